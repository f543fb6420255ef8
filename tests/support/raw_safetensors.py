"""Reads and writes safetensors files with the standard library, also such as no writer of the library would write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_digest

RawTensors = dict[str, tuple[str, list[int], bytes]]


def read_raw(path: str | Path) -> tuple[dict[str, str], RawTensors]:
    """(metadata, {tensor: (dtype, shape, bytes)} in the order of the file); checksums are compared and left out."""
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    data = content[8 + length :]
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    parts = {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in entries}
    if metadata.get("version") == "2":
        rows = parts.pop("checksums")
        expected = block_digests(parts, int(metadata["block_bytes"]))
        expected.append(xxh3_64_digest(content[: 8 + length] + b"".join(expected)))
        assert rows == ("U8", [len(expected), 8], b"".join(expected))
    return metadata, parts


def block_digests(parts: RawTensors, block_bytes: int) -> list[bytes]:
    """The checksum of each block of each tensor."""
    return [
        xxh3_64_digest(content[start : start + block_bytes])
        for _, _, content in parts.values()
        for start in range(0, len(content), block_bytes)
    ]


def write_raw(path: str | Path, metadata: dict[str, Any], parts: RawTensors) -> None:
    """Write tensors and metadata, valid or not, with correct checksums if the version has any."""
    if metadata.get("version") == "2":
        digests = block_digests(parts, int(metadata["block_bytes"]))
        parts = {**parts, "checksums": ("U8", [len(digests) + 1, 8], b"".join(digests) + bytes(8))}
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    head = len(text).to_bytes(8, "little") + text
    if metadata.get("version") == "2":
        data = data[:-8] + xxh3_64_digest(head + b"".join(digests))
    Path(path).write_bytes(head + data)
