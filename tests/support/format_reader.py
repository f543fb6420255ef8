"""A second reader of the file format, written from docs/format.md with the standard library alone."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

from raw_safetensors import read_raw
from xxhash import xxh3_64_digest

SIZES = {"I64": 8, "I32": 4, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
MASK = 2**64 - 1


def float32(value: float) -> float:
    """A double rounded to float32."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def fused(a: float, b: float, c: float) -> float:
    """a * b + c of float32 numbers, rounded once to float32, half to even."""
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if not exact:
        return 0.0
    exponent = max(math.frexp(float(exact))[1] - 1, -126)
    unit = Fraction(2) ** (exponent - 23)
    return float(round(exact / unit) * unit)


class FormatReader:
    """A table's file with its segments or shards; ``row(id)`` returns the floats of an id."""

    def __init__(self, path: str | Path) -> None:
        self.metadata, self.parts = read_raw(path)
        self.config: dict[str, Any] = json.loads(self.metadata["config"])
        self.kind = self.metadata["kind"]
        assert (self.metadata["format"], self.metadata["version"]) in {("mgqe", "1"), ("mgqe", "2")}
        self.num_embeddings = self.config["num_embeddings"]
        self.appended: list[tuple[int, int, int, str]] = []  # first id, id after the last, tier, tensor
        if self.kind == "compact":
            self._read_appended(Path(path))
        if self.kind == "compact-sharded":
            self._read_shards(Path(path).parent)

    def _read_shards(self, folder: Path) -> None:
        """Join the codes of the shards; everything else is as in one file."""
        name, sizes = self.config["set"], self.config["shards"]
        joined = {f"codes.{g}": b"" for g in range(len(self.config["sizes"]))}
        widths = {}
        for number, rows in enumerate(sizes):
            metadata, parts = read_raw(folder / f"shard-{name}-{number:05d}.safetensors")
            assert (metadata["format"], metadata["version"], metadata["kind"]) == (
                "mgqe",
                self.metadata["version"],
                "compact-shard",
            )
            assert json.loads(metadata["config"]) == {"set": name, "number": number}
            assert parts.keys() == joined.keys()
            for g, tensor in enumerate(joined):
                dtype, (n, widths[tensor]), content = parts[tensor]
                assert (dtype, n) == ("U8", rows[g])
                joined[tensor] += content
        for g, tensor in enumerate(joined):
            assert sum(rows[g] for rows in sizes) == self.config["sizes"][g]
            self.parts[tensor] = ("U8", [self.config["sizes"][g], widths[tensor]], joined[tensor])
        self.kind = "compact"

    def _read_appended(self, path: Path) -> None:
        base, digest = self.fingerprint(), b""
        for file in sorted(path.parent.glob(f"{path.name}.append-{base[:8]}-0*")):
            metadata, parts = read_raw(file)
            assert (metadata["format"], metadata["version"], metadata["kind"]) == (
                "mgqe",
                self.metadata["version"],
                "compact-append",
            )
            config = json.loads(metadata["config"])
            assert config.keys() == {"base", "first_id", "tier"}
            assert config["base"] == base
            assert config["first_id"] == self.num_embeddings
            assert parts.keys() == {"codes"}
            first, name = self.num_embeddings, f"appended.{self.num_embeddings}"
            self.parts[name] = parts["codes"]
            self.num_embeddings += parts["codes"][1][0]
            self.appended.append((first, self.num_embeddings, config["tier"], name))
            digest = xxh3_64_digest(digest + file.read_bytes()[-8:])
        record = path.with_name(f"{path.name}.append-{base[:8]}-record")
        if record.exists():
            metadata, parts = read_raw(record)
            assert (metadata["format"], metadata["version"], metadata["kind"]) == ("mgqe", "2", "compact-append-record")
            assert not parts
            config = {"base": base, "segments": len(self.appended), "end": self.num_embeddings, "digest": digest.hex()}
            assert json.loads(metadata["config"]) == config

    def fingerprint(self) -> str:
        """What appended files name their base by."""
        digest = hashlib.sha256()
        digest.update(self.metadata["config"].encode() + b"\0" + self.metadata.get("generation", "").encode() + b"\0")
        for what in ("centroids", "scales"):
            c = 0
            while f"{what}.{c}" in self.parts:
                digest.update(self.parts[f"{what}.{c}"][2])
                c += 1
        for name in ("mean", "matrix", "matrix_scales", "column_scales"):
            if name in self.parts:
                digest.update(self.parts[name][2])
        return digest.hexdigest()

    def row(self, row_id: int) -> list[float]:
        """The row of an id, as floats that float32 holds."""
        if "fallback" in self.parts and not 0 <= row_id < self.num_embeddings:
            return self.numbers("fallback", 0, self.config["embedding_dim"])
        assert 0 <= row_id < self.num_embeddings
        if row_id == self.config["padding_idx"]:
            return [0.0] * self.config["embedding_dim"]
        row: list[float] = getattr(self, f"_{self.kind}")(row_id)
        assert len(row) == self.config["embedding_dim"]
        return row

    # Elements of tensors

    def shape(self, name: str) -> list[int]:
        return self.parts[name][1]

    def numbers(self, name: str, start: int, count: int) -> list[float]:
        """``count`` elements from flat index ``start`` on."""
        dtype, _, content = self.parts[name]
        size = SIZES[dtype]
        raw = content[start * size : (start + count) * size]
        assert len(raw) == count * size
        if dtype == "BF16":
            return [struct.unpack("<f", b"\0\0" + raw[i : i + 2])[0] for i in range(0, len(raw), 2)]
        letter = {"I64": "q", "I32": "i", "F32": "f", "F16": "e", "I8": "b", "U8": "B"}[dtype]
        return list(struct.unpack(f"<{count}{letter}", raw))

    def vector(self, name: str, index: int) -> list[float]:
        """Row ``index`` of a matrix."""
        width = self.shape(name)[1]
        return self.numbers(name, index * width, width)

    def unpacked(self, name: str, index: int, count: int, bits: int) -> list[int]:
        """The ``count`` codes of a packed row."""
        width = self.shape(name)[1]
        start = index * width
        string = int.from_bytes(self.parts[name][2][start : start + width], "little")
        assert string >> (count * bits) == 0
        return [string >> (j * bits) & ((1 << bits) - 1) for j in range(count)]

    # Kinds

    def _compact(self, row_id: int) -> list[float]:
        if "widths" in self.config:
            return self._mixed(row_id)
        tier, rank, tensor = self.locate(row_id)
        subspaces, k = self.config["num_subspaces"][tier], self.config["num_centroids"][tier]
        bits = max(1, (k - 1).bit_length())
        codes = self.unpacked(tensor, rank, subspaces, bits)
        book = self.config["codebook_of"][tier]
        book_subspaces, num_centroids, width = self.shape(f"centroids.{book}")
        row: list[float] = []
        for j, code in enumerate(codes):
            assert code < k <= num_centroids
            if book_subspaces * width == self.config["embedding_dim"] and book_subspaces % subspaces == 0:
                width_ratio = book_subspaces // subspaces
                chosen = [j * width_ratio + i for i in range(width_ratio)]
            else:
                assert book_subspaces == 1
                assert subspaces * width == self.config["embedding_dim"]
                chosen = [0]
            for subspace in chosen:
                values = self.numbers(f"centroids.{book}", (subspace * num_centroids + code) * width, width)
                if self.config["centroid_dtype"] == "int8":
                    (scale,) = self.numbers(f"scales.{book}", subspace, 1)
                    values = [float32(v * scale) for v in values]
                row += values
        return row

    def _mixed(self, row_id: int) -> list[float]:
        config, d = self.config, self.config["embedding_dim"]
        coordinates = self._coordinates(*self.locate(row_id))
        if config["matrix_dtype"] is None:
            return coordinates
        assert self.shape("matrix") == [len(coordinates), d]
        row = self.numbers("mean", 0, d)
        if config["matrix_dtype"] == "int8_columns":
            entries = [self.vector("matrix", k) for k in range(len(coordinates))]
            sums = [sum(z * entry for z, entry in zip(coordinates, column)) for column in zip(*entries, strict=True)]
            scales = self.numbers("column_scales", 0, d)
            return [float32(m + float32(s * total)) for m, s, total in zip(row, scales, sums, strict=True)]
        for k, z in enumerate(coordinates):
            entries = self.vector("matrix", k)
            if config["matrix_dtype"] == "int8":
                (scale,) = self.numbers("matrix_scales", k, 1)
                entries = [float32(entry * scale) for entry in entries]
            row = [fused(z, entry, have) for entry, have in zip(entries, row, strict=True)]
        return row

    def _coordinates(self, tier: int, rank: int, tensor: str) -> list[float]:
        config, subspaces = self.config, len(self.config["widths"])
        bits_of = [config["code_bits"][g * subspaces : (g + 1) * subspaces] for g in range(len(config["sizes"]))]
        book = config["codebook_of"][tier]
        readers = [bits for bits, c in zip(bits_of, config["codebook_of"], strict=True) if c == book]
        row_bytes = self.shape(tensor)[1]
        assert row_bytes == (sum(bits_of[tier]) + 7) // 8
        string = int.from_bytes(self.parts[tensor][2][rank * row_bytes : (rank + 1) * row_bytes], "little")
        coordinates: list[float] = []
        first = 0
        for j, bits in enumerate(bits_of[tier]):
            code, width = string & ((1 << bits) - 1), config["widths"][j]
            string >>= bits
            values = self.numbers(f"centroids.{book}", first + code * width, width)
            if f"scales.{book}" in self.parts:
                (scale,) = self.numbers(f"scales.{book}", j, 1)
                values = [float32(v * scale) for v in values]
            coordinates += values
            first += width << max(of_reader[j] for of_reader in readers)
        assert string == 0
        assert self.shape(f"centroids.{book}") == [first]
        return coordinates

    def locate(self, row_id: int) -> tuple[int, int, str]:
        """The tier of an id, and the row and the tensor of its codes."""
        for first, end, tier, tensor in self.appended:
            if first <= row_id < end:
                return tier, row_id - first, tensor
        tier, rank = self._locate_in_base(row_id)
        return tier, rank, f"codes.{tier}"

    def _locate_in_base(self, row_id: int) -> tuple[int, int]:
        sizes, order = self.config["sizes"], self.config["order"]
        if order is None:
            tier = 0
            while row_id >= sizes[tier]:
                row_id -= sizes[tier]
                tier += 1
            return tier, row_id
        i = row_id
        for level in range(len(sizes) - 1):
            words = int.from_bytes(self.parts[f"tier_map.bits.{level}"][2], "little")
            block = i // 256
            (ones,) = self.numbers(f"tier_map.ranks.{level}", block, 1)
            ones += (words >> (256 * block) & ((1 << (i % 256)) - 1)).bit_count()
            if words >> i & 1:
                return order[level], int(ones)
            i -= int(ones)
        return order[-1], i

    def _full(self, row_id: int) -> list[float]:
        return self.vector("weight", row_id)

    def _low_rank(self, row_id: int) -> list[float]:
        row = [0.0] * self.config["embedding_dim"]
        for j, factor in enumerate(self.vector("factors", row_id)):
            row = [have + factor * p for have, p in zip(row, self.vector("projection", j), strict=True)]
        return row

    def _scalar(self, row_id: int) -> list[float]:
        d, bits = self.config["embedding_dim"], self.config["bits"]
        row = []
        for t, code in enumerate(self.unpacked("codes", row_id, d, bits)):
            grid = row_id if self.config["granularity"] == "row" else t
            (step,), (offset,) = self.numbers("step", grid, 1), self.numbers("offset", grid, 1)
            row.append(float32(float32(code * step) + offset))
        return row

    def _hash(self, row_id: int) -> list[float]:
        row = [0.0] * self.config["embedding_dim"]
        for j in range(self.config["num_hashes"]):
            bucket = hash_number(row_id, j, self.config["seed"], self.config["num_buckets"])
            row = [float32(a + b) for a, b in zip(row, self.vector("weight", bucket), strict=True)]
        return row

    def _quotient_remainder(self, row_id: int) -> list[float]:
        m = self.config["num_remainders"]
        first, second = self.vector("quotients", row_id // m), self.vector("remainders", row_id % m)
        if self.config["operation"] == "concat":
            return first + second
        if self.config["operation"] == "mult":
            return [float32(a * b) for a, b in zip(first, second, strict=True)]
        return [float32(a + b) for a, b in zip(first, second, strict=True)]

    def _cce(self, row_id: int) -> list[float]:
        columns, k = self.config["num_columns"], self.config["num_centroids"]
        row: list[float] = []
        for j, code in enumerate(self.unpacked("codes", row_id, columns, max(1, (k - 1).bit_length()))):
            helper = hash_number(row_id, self.config["clustered"] * columns + j, self.config["seed"], k)
            pair = zip(self.vector("clusters", j * k + code), self.vector("helpers", j * k + helper), strict=True)
            row += [float32(a + b) for a, b in pair]
        return row

    def _additive(self, row_id: int) -> list[float]:
        books, k, d = (self.config[name] for name in ("num_codebooks", "num_centroids", "embedding_dim"))
        row = [0.0] * d
        for m, code in enumerate(self.unpacked("codes", row_id, books, max(1, (k - 1).bit_length()))):
            scale = self.numbers("scales", m, 1)[0] if self.config["centroid_dtype"] == "int8" else 1.0
            words = self.numbers("codebooks", (m * k + code) * d, d)
            row = [float32(have + float32(word * scale)) for have, word in zip(row, words, strict=True)]
        return row


def hash_number(row_id: int, which: int, seed: int, num_buckets: int) -> int:
    """h_which(id)."""
    x = (row_id + (which + 1) * 0x9E3779B97F4A7C15 + seed * 2**32) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    x ^= x >> 31
    return (x >> 1) % num_buckets
