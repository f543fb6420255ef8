"""The file of an id map: its bytes never change, a second reader agrees, and damage is an error."""

from __future__ import annotations

import hashlib
import json
import os
import re

import numpy as np
import pytest
import torch
from make_golden import golden_id_maps
from paths import GOLDEN, ROOT
from raw_safetensors import read_raw, write_raw

import mgqe
from mgqe import ArtifactError, IdMap
from mgqe.ids.keys import strings_of
from mgqe.ids.strings import hash_integers, hash_keys

pytest.importorskip("polars")

GOLDEN = GOLDEN / "idmap"
VERSION_1 = GOLDEN.parent / "version-1" / "idmap"
FORMAT_DOC = ROOT / "docs" / "format.md"
SHA256 = {
    "binary.safetensors": "f25fc2fca6d61376026a641116624cd8608a89044de698094002dbd0a2d63612",
    "hashes.safetensors": "11793119b46bde8fb61ecd16d74f2c5e0efe3d319c3f0597796201f7b7635d4a",
    "int32.safetensors": "aca2b6e76c4779233a7e92765660e420be1dd1caf847143cb55f7ecf6a0bec57",
    "int64.safetensors": "6e881abf17707ba479618a390088ae5d5f99542b10202ed484ec1a9afe0adc79",
    "string.safetensors": "dcd459abc2302bead17fa5699e5a6e5e8b63ecdba80bd21d8cdce026e4e4228e",
    "uint64.safetensors": "ed8292629f315bc9302bbe8555af2e9ef26a892123f397800799f2328cb1c2b0",
}
GOLDEN_RATIO, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def plain_hash(key, seed):
    """The hash, written from docs/format.md alone."""
    if isinstance(key, int):
        return mix((key & MASK) ^ (seed * GOLDEN_RATIO & MASK))
    h = (seed + len(key)) * GOLDEN_RATIO & MASK
    for start in range(0, len(key), 8):
        h = mix(h ^ int.from_bytes(key[start : start + 8], "little"))
    return h


class Reader:
    """A second reader, written from docs/format.md with the standard library alone."""

    def __init__(self, path):
        metadata, self.parts = read_raw(path)
        self.config = json.loads(metadata["config"])
        assert (metadata["format"], metadata["kind"]) == ("mgqe", "id-map")
        assert metadata["version"] in ("1", "2")
        self.n = self.config["num_ids"]
        self.k = (self.parts["index.directory"][1][0] - 1).bit_length() - 1

    def number(self, name, i):
        size = {"I64": 8, "I32": 4, "U8": 1}[self.parts[name][0]]
        return int.from_bytes(self.parts[name][2][size * i : size * i + size], "little", signed=size > 1)

    def id(self, row):
        kind = self.config["ids"]
        if kind in ("int64", "uint64"):
            value = self.number("ids", row)
            return value & MASK if kind == "uint64" else value
        if "ids.hashes" in self.parts:
            return self.number("ids.hashes", row) & MASK
        start, end = self.number("ids.offsets", row), self.number("ids.offsets", row + 1)
        return self.parts["ids.bytes"][2][start:end]

    def row(self, key):
        h = plain_hash(key, self.config["seed"])
        bucket, fingerprint = h >> (64 - self.k), (h >> (56 - self.k)) & 255
        for i in range(self.number("index.directory", bucket), self.number("index.directory", bucket + 1)):
            row = self.number("index.rows", i)
            if self.number("index.fingerprints", i) == fingerprint and self.id(row) in (key, h):
                return row
        return None

    def counts(self):
        found = []
        for i in range(self.parts["counts.ends"][1][0]):
            found += [self.number("counts.values", i)] * (self.number("counts.ends", i) - len(found))
        return found


def test_every_golden_file_is_listed():
    assert {path.name for path in GOLDEN.iterdir()} == SHA256.keys() == golden_id_maps().keys()


@pytest.mark.parametrize("name", SHA256)
def test_bytes(name, tmp_path):
    content = (GOLDEN / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256[name]
    ids, options = golden_id_maps()[name]
    made = IdMap.from_log(ids, "item", **options)
    assert made.save(tmp_path / name) == len(content)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("folder", [GOLDEN, VERSION_1], ids=["version 2", "version 1"])
@pytest.mark.parametrize("name", SHA256)
def test_a_second_reader_agrees(name, folder):
    found, reader = IdMap.load(folder / name), Reader(folder / name)
    found.validate()
    assert found.counts.tolist() == reader.counts()
    every = golden_id_maps()[name][0]["item"].unique(maintain_order=True).to_list()
    keys = [key.encode() if isinstance(key, str) else key for key in every]
    assert found.rows(every).tolist() == [reader.row(key) for key in keys]
    if name != "hashes.safetensors":
        read = [reader.id(row) for row in range(len(found))]
        assert list(found.ids(torch.arange(len(found)))) == [b.decode() if found.kind == "string" else b for b in read]


@pytest.mark.parametrize("seed", [0, 1, 15])
def test_hashes(seed):
    numbers = [0, 1, -1, 2**63 - 1, -(2**63), 12345]
    assert hash_integers(np.array(numbers, np.int64).view(np.uint64), seed).tolist() == [
        plain_hash(i, seed) for i in numbers
    ]
    texts = [b"", b"\0", b"a", b"12345678", b"123456789", b"\xff" * 100, bytes(16)]
    assert hash_keys(strings_of(texts, "binary"), seed).tolist() == [plain_hash(t, seed) for t in texts]


def test_documented_hashes():
    shown = [f"{plain_hash(key, 0):016x}" for key in (1, -1, b"", b"apple", b"nine bytes")]
    text = FORMAT_DOC.read_text()
    assert all(value in text for value in shown), shown


def test_the_documented_example():
    """Ids 7, 7, 7, -3, -3, 5, 9 of docs/format.md."""
    text, content = FORMAT_DOC.read_text(), (GOLDEN / "int32.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    section = text[text.index("## Id maps") :]
    header = re.search(r"```json\n(.*?)\n```", section, re.DOTALL).group(1)
    data = re.search(r"```hex\n(.*?)\n```", section, re.DOTALL).group(1)
    assert content[8 : 8 + length].decode().rstrip() == header
    assert content[8 + length :] == bytes.fromhex(data)


def test_saved_over_and_moved_on(tmp_path):
    """A map in mapped memory does not change when another one is saved to its file."""
    path = tmp_path / "a"
    ids, _ = golden_id_maps()["int64.safetensors"]
    IdMap.from_log(ids, "item").save(path)
    old = IdMap.load(path)
    rows = old.rows(ids["item"])
    IdMap.from_log(ids.reverse().head(3), "item").save(path)
    assert old.rows(ids["item"]).equal(rows)
    assert len(IdMap.load(path, mmap=False)) == 2
    old.save(path)
    assert path.read_bytes() == (GOLDEN / "int64.safetensors").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(broken, tmp_path, monkeypatch):
    path = tmp_path / "a"
    found = IdMap.load(GOLDEN / "int64.safetensors")
    found.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match=r"could not write [\d,]+ bytes \(No space left.*nothing at the path has changed"):
        IdMap.load(GOLDEN / "string.safetensors").save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        IdMap.load(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"compact-small\.safetensors: holds 'compact', no id map: .* mgqe\.load"):
        IdMap.load(GOLDEN.parent / "compact-small.safetensors")
    with pytest.raises(ArtifactError, match=r"'id-map'"):
        mgqe.load(GOLDEN / "int32.safetensors")


@pytest.mark.parametrize("name", SHA256)
def test_a_file_cut_short_is_refused(name, tmp_path):
    content = (GOLDEN / name).read_bytes()
    for length in range(0, len(content), max(1, len(content) // 60)):
        (tmp_path / "a").write_bytes(content[:length])
        with pytest.raises(ArtifactError, match="a: not a whole safetensors file"):
            IdMap.load(tmp_path / "a")


def i64(*values):
    return b"".join(value.to_bytes(8, "little", signed=True) for value in values)


def i32(*values):
    return b"".join(value.to_bytes(4, "little", signed=True) for value in values)


def changed(name, tmp_path, config=None, **parts):
    metadata, found = read_raw(GOLDEN / name)
    if config is not None:
        metadata["config"] = json.dumps({**json.loads(metadata["config"]), **config})
    for key, part in parts.items():
        if part is None:
            del found[key.replace("__", ".")]
        else:
            found[key.replace("__", ".")] = part
    write_raw(tmp_path / "a", metadata, found)
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("name", "config", "parts", "match"),
    [
        ("int32", {"num_ids": 5}, {}, r"tensor 'ids' must be int32 or int64 \(5,\), got int32 \(4,\)"),
        ("int32", {"num_ids": 0}, {}, "a map has at least one id"),
        ("int32", {"num_ids": -1}, {}, "'num_ids' must be a whole number of 0 to"),
        ("int32", {"num_ids": True}, {}, "'num_ids' must be a whole number"),
        ("int32", {"seed": 16}, {}, "'seed' must be a whole number of 0 to 15, got 16"),
        ("int32", {"ids": "float"}, {}, "'ids' must be one of int64, uint64, string, binary, got 'float'"),
        (
            "int32",
            {"interactions": 8},
            {},
            "'interactions' and 'distinct' are 8 and 4, which do not fit 'counts': 4 ids",
        ),
        ("int32", {"interactions": 6}, {}, "which do not fit 'counts': 4 ids with 7 interactions"),
        ("int32", {"distinct": 3}, {}, "which do not fit"),
        ("int32", {"distinct": 5}, {}, "which do not fit"),
        ("int32", {"interactions": 9, "distinct": 5}, {}, "which do not fit"),  # cut off, and more than the rarest
        ("int32", {}, {"counts__values": ("I64", [3], i64(4, 2, 1))}, "4 ids with 8 interactions"),
        ("int32", {}, {"counts__ends": ("I64", [3], i64(2**62, -(2**63), 4))}, "'counts.ends' must rise to 4"),
        ("int32", {}, {"counts__values": ("I64", [3], i64(-(2**63), 2**62, 1))}, "'counts.values' must fall"),
        (
            "int32",
            {},
            {"ids": ("BF16", [4], bytes(8))},
            r"tensor 'ids' has type torch\.bfloat16, which no id map holds",
        ),
        ("int32", {"more": 1}, {}, "config must have the entries"),
        ("int32", {"ids": "string"}, {}, "expected the tensors"),
        ("int32", {}, {"ids": None}, "expected the tensors"),
        ("int32", {}, {"more": ("U8", [1], b"1")}, "expected the tensors"),
        ("int32", {}, {"index__rows": ("I64", [4], i64(0, 1, 2, 3))}, "tensor 'index.rows' must be int32"),
        ("int32", {}, {"ids": ("I32", [4, 1], i32(0, 1, 2, 3))}, "tensor 'ids' must be int32 or int64"),
        ("int32", {}, {"index__directory": ("I32", [3], i32(0, 2, 4))}, "'index.directory' must be int32"),
        ("int64", {}, {"index__directory": ("I32", [17], i32(*[1] * 17))}, "'index.directory' must run from 0 to"),
        ("int32", {}, {"counts__ends": ("I64", [3], i64(1, 2, 5))}, "'counts.ends' must rise to 4"),
        ("int32", {}, {"counts__ends": ("I64", [3], i64(1, 1, 4))}, "'counts.ends' must rise to 4"),
        ("int32", {}, {"counts__values": ("I64", [3], i64(1, 2, 3))}, "'counts.values' must fall"),
        ("int32", {}, {"counts__values": ("I64", [3], i64(2, 1, 0))}, "'counts.values' must fall and be at least 1"),
        ("int32", {}, {"counts__values": ("I64", [0], b""), "counts__ends": ("I64", [0], b"")}, "must rise to 4"),
        ("string", {}, {"ids__bytes": ("U8", [4], b"1234")}, "'ids.offsets' must run from 0 to the end"),
    ],
)
def test_refuses(name, config, parts, match, tmp_path):
    path = changed(f"{name}.safetensors", tmp_path, config, **parts)
    with pytest.raises(ArtifactError, match=f"a: .*{match}"):
        IdMap.load(path)


def test_totals_of_a_map_that_was_cut_off_fit(tmp_path):
    """The log has one more id, which occurs once."""
    assert IdMap.load(changed("int32.safetensors", tmp_path, {"interactions": 8, "distinct": 5})).distinct == 5


def string_part(name, change):
    """A changed tensor of the golden map of strings."""
    dtype, shape, content = read_raw(GOLDEN / "string.safetensors")[1][name]
    return dtype, shape, change(content)


@pytest.mark.parametrize(
    ("parts", "use", "what"),
    [
        ({"ids__bytes": string_part("ids.bytes", lambda b: b"\xff" + b[1:])}, lambda m: m.ids(range(5)), "UTF-8"),
        ({"ids__offsets": string_part("ids.offsets", lambda b: b[:4] + i32(-5) + b[8:])},
         lambda m: m.ids([0]), "outside"),
        ({"ids__offsets": string_part("ids.offsets", lambda b: b[:4] + i32(2**30) + b[8:])},
         lambda m: m.ids([1]), "outside"),
        ({"index__directory": string_part("index.directory", lambda b: b[:4] + i32(*[-1] * 15) + b[64:])},
         lambda m: m.rows([f"item {i}" for i in range(100)], unknown=-1), "directory of buckets"),
        ({"index__rows": string_part("index.rows", lambda b: b"\xff" * len(b))},
         lambda m: m.rows(["item 5" * 1 + "é"], unknown=-1), "a row lies outside"),
        ({"index__rows": string_part("index.rows", lambda b: b"\xff" * len(b))}, IdMap.validate, "a row lies outside"),
        ({"index__rows": string_part("index.rows", lambda b: bytes(len(b)))}, IdMap.validate, "is not found by its id"),
    ],
)  # fmt: skip
def test_damage_that_is_met_later_names_the_file_from_every_method(parts, use, what, tmp_path):
    """The files have correct checksums, as a faulty writer would leave them."""
    damaged = IdMap.load(changed("string.safetensors", tmp_path, **parts))
    with pytest.raises(ArtifactError, match=f"/a: the map is damaged: .*{what}"):
        use(damaged)


def test_a_flipped_bit_in_any_byte_is_refused(tmp_path):
    content = (GOLDEN / "string.safetensors").read_bytes()
    for at in range(0, len(content), 7):
        (tmp_path / "a").write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        for mmap in (True, False):
            with pytest.raises(ArtifactError, match="/a: "):
                IdMap.load(tmp_path / "a", mmap=mmap)
    (tmp_path / "a").write_bytes(content[:-100] + b"?" + content[-99:])
    IdMap.load(tmp_path / "a", verify=False)


def test_damage_inside_shows_when_it_is_met(tmp_path):
    """Damage gives an error or an unknown id, and never a crash or a row outside the table."""
    generator = np.random.default_rng(0)
    for name in SHA256:
        metadata, parts = read_raw(GOLDEN / name)
        every = golden_id_maps()[name][0]["item"].unique(maintain_order=True)
        for part, (dtype, shape, content) in parts.items():
            if part.startswith("counts"):
                continue
            for _ in range(6):
                damaged = bytearray(content)
                damaged[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
                write_raw(tmp_path / "a", metadata, {**parts, part: (dtype, shape, bytes(damaged))})
                try:
                    found = IdMap.load(tmp_path / "a")
                except ArtifactError:
                    continue
                if part != "ids.hashes":  # a damaged hash cannot be told from the hash of another id
                    with pytest.raises(ArtifactError, match="damaged"):
                        found.validate()
                try:
                    rows = found.rows(every, unknown=-1)
                except ArtifactError:
                    continue
                assert int(rows.min()) >= -1
                assert int(rows.max()) < len(found)
