"""Checksums: a flipped bit anywhere in a file is found, without reading more than needed."""

from __future__ import annotations

import io
import json

import pytest
import torch
from paths import GOLDEN
from raw_safetensors import read_raw
from table_cases import CASES, build
from xxhash import xxh3_64_digest

import mgqe
from mgqe.baselines import FullTable
from mgqe.codec.capacity import Capacity
from mgqe.codec.layout import TableLayout, frozen_nbytes
from mgqe.files import checksums, container
from mgqe.files.checksums import BlockHasher, header_digest, with_checksums

MAPPED = CASES[3]


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("case", [CASES[0], CASES[7]], ids=lambda case: case.name)
def test_a_flipped_bit_in_any_byte_of_a_small_file_is_refused(case, mmap, tmp_path):
    mgqe.save(build(case).table, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for at in range(len(content)):
        (tmp_path / "b").write_bytes(flipped(content, at, at % 8))
        with pytest.raises(mgqe.ArtifactError, match="/b: "):
            mgqe.load(tmp_path / "b", mmap=mmap)


def test_the_tensor_and_the_block_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "BLOCK_BYTES", 64)
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 64)
    monkeypatch.setattr(checksums.num_blocks, "__defaults__", (64,))
    monkeypatch.setattr(checksums.checksum_shape, "__defaults__", (64,))
    monkeypatch.setattr(checksums.BlockHasher.__init__, "__defaults__", (64,))
    mgqe.save(FullTable(torch.arange(100.0).reshape(25, 4)), tmp_path / "a")  # 400 bytes: seven blocks
    content = (tmp_path / "a").read_bytes()
    metadata, _ = read_raw(tmp_path / "a")
    assert metadata["block_bytes"] == "64"
    monkeypatch.undo()  # the reader takes the size of blocks from the file
    assert mgqe.load(tmp_path / "a").lookup(torch.tensor(24)).tolist() == [96.0, 97.0, 98.0, 99.0]
    start = 8 + int.from_bytes(content[:8], "little")
    (tmp_path / "a").write_bytes(flipped(content, start + 399))
    with pytest.raises(
        mgqe.ArtifactError, match=r"a: tensor 'weight', block 6 of 7 \(its bytes 384 to 399\) is damaged"
    ):
        mgqe.load(tmp_path / "a")


@pytest.mark.parametrize("pieces", [[b"abcdefghij"], [b"a", b"bcdefg", b"", b"hij"], [b"abcd", b"efgh", b"ij"]])
def test_digests_do_not_depend_on_the_pieces(pieces):
    hasher = BlockHasher([7, 0, 3], block_bytes=4)
    digests = [digest for piece in pieces for digest in hasher.update(piece)]
    hasher.finish()
    assert digests == [xxh3_64_digest(block) for block in (b"abcd", b"efg", b"hij")]


def test_the_documented_bytes_of_a_whole_file():
    written = b"".join(with_checksums(b"head", [2, 0, 1], [b"ab", b"c"]))
    rows = xxh3_64_digest(b"ab") + xxh3_64_digest(b"c")
    assert written == b"headabc" + rows + xxh3_64_digest(b"head" + rows)
    assert header_digest(b"head", rows) == written[-8:]


@pytest.mark.parametrize(("chunks", "match"), [([b"ab"], "-1 bytes"), ([b"ab", b"cd"], r"\+1 bytes")])
def test_more_or_fewer_bytes_than_announced_are_an_error(chunks, match):
    with pytest.raises(ValueError, match=match):
        io.BytesIO().writelines(with_checksums(b"head", [3], chunks))


def test_a_tensor_cannot_take_the_name_of_the_checksums():
    with pytest.raises(ValueError, match="cannot be named 'checksums'"):
        container.encode({"checksums": [torch.zeros(1)]}, "kind", {})


def test_what_is_read_unasked_is_bounded_and_smallest_first(tmp_path, monkeypatch):
    table = build(MAPPED).table  # 330 ids: codes of 18, 20 and 300 bytes, centroids of 256
    mgqe.save(table, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    sizes = {n: e["data_offsets"][1] - e["data_offsets"][0] for n, e in header.items() if n != "__metadata__"}
    limit = sum(sizes.values()) - max(sizes.values()) - sizes["checksums"]
    monkeypatch.setattr(container, "VERIFIED_BYTES", limit)
    largest = max(sizes, key=sizes.get)
    assert largest == "codes.2"
    (tmp_path / "b").write_bytes(flipped(content, start + header[largest]["data_offsets"][0]))
    assert not mgqe.load(tmp_path / "b").equal(table)
    assert not mgqe.load(tmp_path / "b", verify=False).equal(table)
    with pytest.raises(mgqe.ArtifactError, match=r"b: tensor 'codes\.2', block 0 of 1"):
        mgqe.load(tmp_path / "b", verify=True)
    for name in sizes.keys() - {largest}:
        (tmp_path / "b").write_bytes(flipped(content, start + header[name]["data_offsets"][0]))
        with pytest.raises(mgqe.ArtifactError, match="damaged"):
            mgqe.load(tmp_path / "b")


def test_files_without_checksums_load_and_a_wish_to_verify_them_warns(tmp_path):
    old = GOLDEN / "version-1" / "compact-small.safetensors"
    mgqe.load(old)
    with pytest.warns(RuntimeWarning, match="version 1 has no checksums to verify: `mgqe convert`, or load"):
        mgqe.load(old, verify=True)
    mgqe.save(mgqe.load(old), tmp_path / "a")
    mgqe.load(tmp_path / "a", verify=True)


def test_verify_takes_true_false_or_none(tmp_path):
    mgqe.save(build(MAPPED).table, tmp_path / "a")
    with pytest.raises(TypeError, match="verify must be True, False or None, got 'all'"):
        mgqe.load(tmp_path / "a", verify="all")


def test_predicted_sizes_count_the_checksums_of_every_block(tmp_path):
    """Codes of 2.4 MB have three blocks, and codes of 800 kB one."""
    tiers, capacity = mgqe.Tiers.from_sizes((300_000, 200_000)), Capacity.of(8, (300_000, 200_000), (8, 4), (256, 256))
    predicted = frozen_nbytes(tiers, capacity, None, "int8")
    layout = TableLayout.of(tiers, capacity, "int8", None)
    shapes = layout.tensors(capacity.codebook_shapes)
    zeros = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}
    zeros["scales.0"] += 1
    assert [zeros[f"codes.{g}"].nbytes for g in range(2)] == [2_400_000, 800_000]
    table = mgqe.CompactTable.from_tensors(zeros, layout.to_json())
    assert mgqe.save(table, tmp_path / "a") == predicted == (tmp_path / "a").stat().st_size
    parts = mgqe.load(tmp_path / "a").nbytes_by_part()
    header = predicted - sum(parts.values())
    assert 8 * (3 + 1 + 2 + 1) < header < 1000
