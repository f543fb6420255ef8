"""Writes figures to the disk, with the commit, the versions, the machine and the time of their measurement."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mgqe.recsys.train.provenance import commit, machine, versions


def about_this_run() -> dict[str, Any]:
    """Commit, versions, machine and the time."""
    return {
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_record(path: Path, content: Any) -> None:
    """Write indented JSON, with each list of plain values on one line."""
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[([^][{}]*)\]", lambda match: "[" + " ".join(match[1].split()) + "]", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
