"""safetensors files by hand, with the standard library: to write what no writer should, to read plainly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Parts = dict[str, tuple[str, list[int], bytes]]


def read_raw(path: str | Path) -> tuple[dict[str, str], Parts]:
    """Metadata, and {tensor: (dtype, shape, bytes)} in the order of the bytes."""
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    data = content[8 + length :]
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return metadata, {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in entries
    }


def write_raw(path: str | Path, metadata: dict[str, Any], parts: Parts) -> None:
    """Write whatever is given, true or not."""
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)
