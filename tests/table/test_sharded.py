"""A table in a folder of shards: the whole from its parts, and what is refused."""

from __future__ import annotations

import importlib
import json
import mmap
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from raw_safetensors import read_raw, write_raw
from sharded_table import N, write, write_shards

import mgqe
from mgqe.table.sharded import INDEX, new_set, shard_path, write_shard


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("bounds", [(0, N), (0, 7, N), (0, 0, 500, 501, N, N)])
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_shards_load_as_the_whole_table(tmp_path, ordered, bounds, mmap, dtype):
    whole, _ = write(tmp_path / "t", bounds, ordered, dtype)
    loaded = mgqe.load(tmp_path / "t", mmap=mmap)
    assert loaded.equal(whole)
    assert torch.equal(loaded.lookup(torch.arange(N)), whole.lookup(torch.arange(N)))
    assert mgqe.load(tmp_path / "t" / INDEX).equal(whole)
    mgqe.save(loaded, tmp_path / "one")
    assert mgqe.load(tmp_path / "one").equal(whole)


def test_writing_again_replaces_the_table_and_its_shards(tmp_path):
    write(tmp_path / "t", (0, 10, N))
    (tmp_path / "t" / ".shard-0011223344556677-00001.safetensors.0a0b.tmp").write_bytes(b"left by a killed process")
    whole, set_name = write(tmp_path / "t", (0, 500, N), True)
    assert mgqe.load(tmp_path / "t").equal(whole)
    assert {p.name for p in (tmp_path / "t").iterdir()} == {
        INDEX,
        *(shard_path(tmp_path, set_name, i).name for i in range(2)),
    }


def test_a_missing_shard_is_named(tmp_path):
    _, set_name = write(tmp_path / "t", (0, 500, N))
    shard_path(tmp_path / "t", set_name, 1).unlink()
    with pytest.raises(mgqe.ArtifactError, match=f"shard 1 is missing: there is no shard-{set_name}-00001"):
        mgqe.load(tmp_path / "t")


def test_a_folder_without_an_index_is_no_table(tmp_path):
    write(tmp_path / "t", (0, 500, N))
    (tmp_path / "t" / INDEX).unlink()
    with pytest.raises(IsADirectoryError, match=r"a folder without table\.safetensors"):
        mgqe.load(tmp_path / "t")


def test_a_shard_that_is_cut_short_swapped_or_of_another_freeze(tmp_path):
    _, set_name = write(tmp_path / "t", (0, 500, N))
    _, other = write(tmp_path / "u", (0, 400, N))
    first, second = (shard_path(tmp_path / "t", set_name, i) for i in range(2))
    kept = second.read_bytes()
    second.write_bytes(kept[:-1])
    with pytest.raises(mgqe.ArtifactError, match=r"00001.*not a whole safetensors file"):
        mgqe.load(tmp_path / "t")
    second.write_bytes(first.read_bytes())
    with pytest.raises(mgqe.ArtifactError, match=r"'number' must be a whole number in 1 \.\. 1, got 0"):
        mgqe.load(tmp_path / "t")
    second.write_bytes(shard_path(tmp_path / "u", other, 1).read_bytes())
    with pytest.raises(mgqe.ArtifactError, match="'set' must be one of"):
        mgqe.load(tmp_path / "t")
    second.write_bytes(kept)
    mgqe.load(tmp_path / "t")


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("set", "../../../../etc/pa", "'set' must be 16 hexadecimal digits"),
        ("set", 7, "'set' must be 16 hexadecimal digits"),
        ("shards", 7, "'shards' must be a list"),
        ("shards", [[2**40, 0], [0, 2**40]], "'shards' has"),
        ("shards", [[100]], "'shards' must have 2 entries"),
        ("sizes", [2**47, 900], "'sizes'[0] must be a whole number in 0 .. 1000"),
        ("num_subspaces", [4, 2**40], "num_subspaces"),
        ("num_centroids", [16, 600], "tensor 'codes.1' must have shape"),
        ("surplus", 1, "unexpected config entries"),
    ],
)
@pytest.mark.parametrize("ordered", [True, False])
def test_indices_that_cannot_be_right(tmp_path, entry, value, message, ordered):
    write(tmp_path / "t", (0, 500, N), ordered)
    metadata, tensors = read_raw(tmp_path / "t" / INDEX)
    config = {**json.loads(metadata["config"]), entry: value}
    write_raw(tmp_path / "t" / INDEX, {**metadata, "config": json.dumps(config)}, tensors)
    with pytest.raises(mgqe.ArtifactError, match=re.escape(message)):
        mgqe.load(tmp_path / "t")


@pytest.mark.parametrize("name", [INDEX, "shard"])
def test_a_configuration_that_is_no_object(tmp_path, name):
    _, set_name = write(tmp_path / "t", (0, 500, N))
    path = tmp_path / "t" / INDEX if name == INDEX else shard_path(tmp_path / "t", set_name, 1)
    metadata, tensors = read_raw(path)
    write_raw(path, {**metadata, "config": "null"}, tensors)
    with pytest.raises(mgqe.ArtifactError, match=rf"{name}.*must be a JSON object, got null"):
        mgqe.load(tmp_path / "t")


def test_an_index_and_shards_that_claim_more_rows_than_there_are(tmp_path):
    _, set_name = write(tmp_path / "t", (0, N), ordered=True)
    metadata, tensors = read_raw(tmp_path / "t" / INDEX)
    config = {**json.loads(metadata["config"]), "sizes": [2**45, 900], "shards": [[2**45, 900]]}
    config["num_embeddings"] = 2**45 + 900
    write_raw(tmp_path / "t" / INDEX, {**metadata, "config": json.dumps(config)}, tensors)
    with pytest.raises(mgqe.ArtifactError, match=rf"shard-{set_name}-00000.*'codes\.0' must have shape"):
        mgqe.load(tmp_path / "t")


def test_inspect_counts_all_files(tmp_path):
    cli = pytest.importorskip("typer.testing", reason="needs mgqe[recsys]")
    from mgqe.cli.app import app

    write(tmp_path / "t", (0, 500, N))
    done = cli.CliRunner().invoke(app, ["inspect", str(tmp_path / "t")])
    assert done.exit_code == 0, done.output
    total = sum(path.stat().st_size for path in (tmp_path / "t").iterdir())
    assert f"{total:,}" in done.output


def test_ids_cannot_be_appended_to_a_folder(tmp_path):
    write(tmp_path / "t", (0, N))
    with pytest.raises(mgqe.ArtifactError, match="this one is 'compact-sharded'"):
        mgqe.append(tmp_path / "t" / INDEX, torch.zeros(1, 8))
    with pytest.raises(IsADirectoryError):
        mgqe.append(tmp_path / "t", torch.zeros(1, 8))


def test_rows_that_do_not_add_up_are_no_shard(tmp_path):
    with pytest.raises(ValueError, match="bytes compared with the sizes of the tensors"):
        write_shard(tmp_path, new_set(), 0, {"codes.0": (torch.uint8, (3, 2))}, [torch.zeros(2, 2, dtype=torch.uint8)])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    whole, _ = write(tmp_path / "t", (0, 10, N))
    before = sorted(tmp_path.joinpath("t").iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"could not write [\d,]+ bytes \(No space left on device\)"):
        write(tmp_path / "t", (0, 500, N))
    assert sorted(tmp_path.joinpath("t").iterdir()) == before
    assert mgqe.load(tmp_path / "t").equal(whole)


def test_without_torchrec_the_error_names_the_extra_and_the_install_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrec", None)
    monkeypatch.delitem(sys.modules, "mgqe.torchrec", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'mgqe\[torchrec\]'.*fbgemm-gpu-cpu==1\.8\.0"):
        importlib.import_module("mgqe.torchrec")


def mapped_from(tensor: torch.Tensor, path) -> bool:
    """Whether a tensor's memory is mapped from a file (Linux)."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            return bool(name) and name[0].strip() == str(path.resolve())
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
@pytest.mark.parametrize("bounds", [(0, 7, N), (0, 40, 100, 101, 500, N)])
@pytest.mark.parametrize("ordered", [True, False])
def test_shards_stay_mapped(tmp_path, bounds, ordered):
    whole, set_name = write(tmp_path / "t", bounds, ordered)
    loaded = mgqe.load(tmp_path / "t")
    arrays = [rows for rows in loaded.snapshot.arrays if rows.shape[0]]
    shards = {shard_path(tmp_path / "t", set_name, number) for number in range(len(bounds) - 1)}
    assert all(any(mapped_from(rows, path) for path in shards) for rows in arrays)
    assert sum(rows.shape[0] for rows in arrays) == N
    assert loaded.config == whole.config
    ids = torch.randint(N, (50, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.bag(ids), whole.bag(ids))
    assert torch.equal(loaded.locate(ids)[1], whole.locate(ids)[1])
    queries = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(loaded.topk(queries, 9), whole.topk(queries, 9), strict=True):
        assert torch.equal(mine, theirs)
    vectors = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded.append(vectors), whole.append(vectors))
    loaded.update(ids[0, :1], vectors[:1])
    whole.update(ids[0, :1], vectors[:1])
    assert loaded.equal(whole)


@pytest.mark.parametrize("padding_idx", [0, 999])
def test_a_padding_in_any_shard(tmp_path, padding_idx):
    table, _ = write(tmp_path / "t", (0, 500, N), ordered=True)
    path = tmp_path / "t" / INDEX
    metadata, tensors = read_raw(path)
    write_raw(
        path,
        {**metadata, "config": json.dumps({**json.loads(metadata["config"]), "padding_idx": padding_idx})},
        tensors,
    )
    loaded = mgqe.load(tmp_path / "t", verify=False)
    assert loaded.padding_idx == padding_idx
    assert not loaded.lookup(torch.tensor([padding_idx])).any()
    assert torch.equal(loaded.lookup(torch.tensor([77, 600])), table.lookup(torch.tensor([77, 600])))


@pytest.mark.parametrize("damaged", [0, 1])
def test_codes_that_cannot_be_right_are_refused_in_any_shard(tmp_path, damaged):
    _, set_name = write(tmp_path / "t", (0, 500, N), ordered=True)
    path = shard_path(tmp_path / "t", set_name, damaged)
    metadata, tensors = read_raw(path)
    dtype, shape, content = tensors["codes.1"]
    write_raw(path, metadata, {**tensors, "codes.1": (dtype, shape, b"\xff" * len(content))})
    with pytest.raises(mgqe.ArtifactError, match=r"'codes\.1' has spare bits that are not zero"):
        mgqe.load(tmp_path / "t")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_shards_with_a_tier_map_take_no_memory_of_their_own(tmp_path):
    n, width = 200_000, 64
    made = torch.Generator().manual_seed(0)
    tiers = mgqe.Tiers.from_counts(torch.rand(n, generator=made), fractions=(0.1, 0.9))
    codes = [torch.randint(256, (size, width), generator=made) for size in tiers.sizes]
    book = torch.randn(width, 256, 1, generator=made)
    table = mgqe.CompactTable.from_codes(tiers, codes, [book], (0, 0), (256, 256))
    write_shards(tmp_path / "t", table, tiers, (0, 60_000, 120_000, n))

    def private_pages() -> int:  # of this process, less those of files
        _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return resident - of_files

    mgqe.load(tmp_path / "t", verify=False)  # whatever the first call sets up
    before = private_pages()
    loaded = mgqe.load(tmp_path / "t", verify=False)
    grown = (private_pages() - before) * mmap.PAGESIZE
    assert grown < n * width / 4, f"{grown:,} bytes for {n * width:,} of codes"
    ids = torch.randint(n, (500,), generator=made)
    assert torch.equal(loaded.lookup(ids), table.lookup(ids))


def test_joining_by_hand_gives_the_whole_table(tmp_path):
    whole, _ = write(tmp_path / "t", (0, 7, 500, N), ordered=False)
    loaded = mgqe.load(tmp_path / "t")
    assert len(loaded.snapshot.codes) > loaded.num_tiers == 2
    merged = loaded.snapshot.merged()
    assert len(merged.codes) == 2
    assert mgqe.CompactTable(merged).equal(whole)
    assert pickle.loads(pickle.dumps(loaded)).equal(whole)
    loaded.validate()


@pytest.mark.parametrize("ordered", [True, False])
def test_more_ranges_than_kernels_take_are_joined(tmp_path, ordered):
    bounds = (*range(0, 600, 2), N)
    whole, _ = write(tmp_path / "t", bounds, ordered)
    loaded = mgqe.load(tmp_path / "t")
    assert len(loaded.snapshot.arrays) == 2
    assert loaded.equal(whole)


@pytest.mark.parametrize("ordered", [True, False])
def test_shards_load_under_another_default_device(tmp_path, ordered):
    whole, _ = write(tmp_path / "t", (0, 7, N), ordered)
    with torch.device("meta"):
        loaded = mgqe.load(tmp_path / "t")
    assert loaded.equal(whole)
