"""Copies of model folders whose manifest is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest


def seal(manifest: dict[str, Any]) -> bytes:
    """The bytes of a manifest with its correct checksum, as docs/convert.md specifies it."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    checksum = xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())
    return json.dumps({**content, "checksum": checksum}, indent=1).encode()


def copy_changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], object], sealed: bool = True) -> Path:
    """A copy of a model folder in ``target`` whose manifest ``change`` has changed; sealed: with a correct checksum."""
    copy = target / "model"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_bytes(seal(manifest) if sealed else json.dumps(manifest).encode())
    return copy
