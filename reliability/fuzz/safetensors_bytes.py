"""Splits and joins safetensors files without the code of the library under test."""

from __future__ import annotations

import json
from typing import Any

Header = dict[str, Any]


def split(content: bytes) -> tuple[Header, bytes] | None:
    """The header of a file and the bytes of its tensors; None if it is no safetensors file."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        return None
    try:
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        return None
    return (header, content[8 + size :]) if isinstance(header, dict) else None


def join(header: object, payload: bytes) -> bytes:
    """A file with any header."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text + payload


def unchecked(files: dict[str, bytes]) -> dict[str, bytes]:
    """The artefact in format 1, which has no checksums, no record of segments, and no entries about other files."""
    old = {name: _unchecked(content) for name, content in files.items() if not name.endswith("-record")}
    if "manifest.json" in old:
        old["manifest.json"] = _old_manifest(json.loads(old["manifest.json"]), old)
    return old


def _old_manifest(manifest: dict[str, Any], files: dict[str, bytes]) -> bytes:
    for entry in (manifest, *manifest["tables"], manifest["dense"]):
        del entry["checksum"]
    for entry in (*manifest["tables"], manifest["dense"]):
        entry["nbytes"] = len(files[entry["file"]])
    return json.dumps({**manifest, "version": 1}).encode()


def _unchecked(content: bytes) -> bytes:
    parts = split(content)
    if parts is None:
        return content
    header, payload = parts
    about = header["__metadata__"]
    about["version"] = "1"
    if about["kind"] == "weights":
        about["config"] = "{}"
    entry = header.pop("checksums", None)
    if entry is None:
        return join(header, payload)
    begin, end = entry["data_offsets"]
    for other in header.values():
        if "data_offsets" in other and other["data_offsets"][0] >= end:
            other["data_offsets"] = [offset - (end - begin) for offset in other["data_offsets"]]
    return join(header, payload[:begin] + payload[end:])
