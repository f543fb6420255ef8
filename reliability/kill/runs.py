"""Long commands, which are killed and started again until they end, and then compared with an undisturbed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

SETTINGS = {
    "dim": 8, "batch_size": 256, "max_epochs": 4, "anneal_epochs": 2, "quantised_epochs": 2, "eval_negatives": 20,
}  # fmt: skip
VARYING = ("seconds", "peak_memory_bytes", "commit", "machine", "versions")  # in names of entries that vary by run
STUDY = """
seeds = [1, 2]
[settings]
{settings}
[pairs.gmf]
title = "GMF"
model = "gmf"
data = "{data}"
[[methods]]
name = "MGQE"
budgets = {{ 60 = ["mgqe:D=4,K=4/2"] }}
[[methods]]
name = "scalar"
budgets = {{ 60 = ["scalar:bits=4"] }}
"""


def write_log(folder: Path) -> Path:
    """Write a data set of some hundred interactions."""
    from mgqe.recsys.data.datasets import planted

    data = planted(num_users=60, num_items=80, rank=3, per_user=12)
    path = folder / "interactions.txt"
    path.write_text("".join(f"{u} {i}\n" for u, i in zip(data.users.tolist(), data.items.tolist(), strict=True)))
    return path


def _with_settings() -> list[str]:
    return [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]


def train(folder: Path, out: Path) -> list[str]:
    """``mgqe train``."""
    return [
        "train", "--data", str(folder / "interactions.txt"), "--embedding", "mgqe:D=4,K=4/2", "--out", str(out),
        *_with_settings(),
    ]  # fmt: skip


def compare(folder: Path, out: Path) -> list[str]:
    """``mgqe compare`` of three embeddings with two seeds."""
    embeddings = [part for e in ("full", "mgqe:D=4,K=4/2", "scalar:bits=4") for part in ("--embedding", e)]
    return [
        "compare", "--data", str(folder / "interactions.txt"), *embeddings, "--seeds", "1,2", "--out", str(out),
        *_with_settings(),
    ]  # fmt: skip


def study(folder: Path, out: Path) -> list[str]:
    """``mgqe study`` of a declaration."""
    settings = "\n".join(f"{name} = {value}" for name, value in SETTINGS.items())
    declaration = folder / "study.toml"
    declaration.write_text(STUDY.format(settings=settings, data=folder / "interactions.txt"))
    return ["study", str(declaration), "--out", str(out), "--jobs", "1"]


RUNS: dict[str, Callable[[Path, Path], list[str]]] = {"train": train, "compare": compare, "study": study}


def prepare() -> None:
    """Import the modules of the commands, so that forked processes have them. This starts no threads."""
    for name in ("polars", "mgqe.cli.app", "mgqe.recsys.data.ncf"):
        import_module(name)


def run_command(arguments: list[str]) -> None:
    """Run ``mgqe ARGUMENTS`` in this process."""
    import_module("mgqe.cli.app").app(arguments, standalone_mode=False)


def contents(out: Path) -> dict[str, Any]:
    """Name -> content of every file: the bytes, or for JSON the entries that do not vary by run.

    Pictures and checkpoints, which hold times, have the content None.
    """
    return {str(path.relative_to(out)): _content(path) for path in sorted(out.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.suffix in (".png", ".pt"):
        return None
    if path.suffix == ".json":
        return _without_varying(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_without_varying(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _without_varying(value: Any) -> Any:
    if isinstance(value, dict):
        names = [name for name in value if not any(word in name for word in VARYING)]
        return {name: _without_varying(value[name]) for name in names}
    return [_without_varying(element) for element in value] if isinstance(value, list) else value
