"""Folders of saved models with other manifests than they were saved with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest


def seal(manifest: dict[str, Any]) -> bytes:
    """A manifest's bytes with the checksum that belongs to them, as docs/convert.md has it."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    checksum = xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())
    return json.dumps({**content, "checksum": checksum}, indent=1).encode()


def rewritten(folder: Path, place: Path, lie: Callable[[dict[str, Any]], object], sealed: bool = True) -> Path:
    """A copy of a model's folder whose manifest was changed by ``lie``."""
    copy = place / "model"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    lie(manifest)
    (copy / "manifest.json").write_bytes(seal(manifest) if sealed else json.dumps(manifest).encode())
    return copy
