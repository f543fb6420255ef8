"""What the examples of third-party models share: a table of bytes and quality before and after, kept as JSON."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from mgqe.recsys.train import provenance

Row = tuple[str, int, dict[str, float]]  # name, bytes of the embedding tables, quality


def show(rows: list[Row]) -> None:
    """Print the rows; the first one is the reference."""
    full = rows[0][1]
    print(f"\n{'':34}{'bytes':>12}{'':8}" + "".join(f"{name:>12}" for name in rows[0][2]))
    for name, nbytes, quality in rows:
        print(f"{name:34}{nbytes:12,}{100 * nbytes / full:7.1f}%" + "".join(f"{v:12.4f}" for v in quality.values()))


def keep(out: Path | None, packages: list[str], settings: dict[str, Any], rows: list[Row], report: object) -> None:
    """Add rows to a JSON file, with the versions and machine, beside the rows of other models and seeds."""
    if out is None:
        return
    run = {
        "settings": settings,
        "commit": provenance.commit(),
        "versions": {**provenance.versions(), **{name: importlib.metadata.version(name) for name in packages}},
        "machine": provenance.machine(),
        "tables": str(report).splitlines(),
        "results": [{"model": name, "bytes": nbytes, "quality": quality} for name, nbytes, quality in rows],
    }
    runs = json.loads(out.read_text())["runs"] if out.is_file() else []
    runs = [other for other in runs if other["settings"] != settings]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"runs": [*runs, run]}, indent=1) + "\n")
