"""What a figure was measured with: commit, versions, machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch


def commit() -> str | None:
    """The commit of the code that runs, with `+changes` if files differ from it; None when it cannot be known."""
    commit = _commit_of(Path(__file__).resolve().parent, tracked=Path(__file__).name)
    if commit is not None:
        return commit
    try:  # installed from a folder or a repository: PEP 610 says from which
        text = importlib.metadata.distribution("mgqe").read_text("direct_url.json")
        origin = json.loads(text) if text else {}
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    if "vcs_info" in origin:
        return str(origin["vcs_info"].get("commit_id"))
    if str(origin.get("url", "")).startswith("file://"):
        return _commit_of(Path(unquote(urlparse(origin["url"]).path)), tracked="pyproject.toml")
    return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a figure."""
    packages = ("mgqe", "torch", "numpy", "polars", "safetensors")
    return {"python": platform.python_version(), **{name: version_of(name) for name in packages}}


def version_of(package: str) -> str:
    """The version of an installed package, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str | int]:
    """Processor, system, and how many of its cores were used."""
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _commit_of(folder: Path, tracked: str) -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", tracked)
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/src")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None
