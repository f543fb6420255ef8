"""The command doctor, and what --version prints."""

from __future__ import annotations

import json
import os
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version

import torch
import typer
from rich.markup import escape
from rich.table import Table

import mgqe
from mgqe import ops
from mgqe.cli.terminal import AsJson, clean_errors, output

commands = typer.Typer()
# What each extra brings -> what works with it.
EXTRAS = {
    "polars": "logs, data sets, Parquet and CSV (mgqe[recsys])",
    "matplotlib": "pictures (mgqe[recsys])",
    "torchmetrics": "AUC and calibration (mgqe[recsys])",
    "faiss-cpu": "table.to_faiss (mgqe[faiss])",
    "huggingface_hub": "mgqe.push_to_hub, and names of repositories (mgqe[hub])",
    "onnx": "mgqe.export_onnx (mgqe[onnx])",
    "onnxruntime": "running what it writes (mgqe[onnx])",
    "torchrec": "mgqe.torchrec (mgqe[torchrec])",
    "triton": "kernels for GPUs (mgqe[triton])",
    "starlette": "mgqe serve (mgqe[serve])",
}
CORE = ("torch", "numpy", "safetensors", "xxhash", "filelock", "typer", "rich")


@commands.command(
    help="Show what this installation is made of: versions, kernels and instruction set, threads, optional packages.",
    epilog="Examples:\n\n  mgqe doctor\n\n  mgqe doctor --json",
)
@clean_errors
def doctor(as_json: AsJson = False) -> None:
    facts = {"mgqe": mgqe.__version__, "python": platform.python_version(), "system": platform.platform()}
    facts.update({name: _version(name) or "missing" for name in CORE})
    kernels = _kernels()
    if as_json:
        found = {name: _version(name) for name in EXTRAS}
        print(json.dumps({**facts, **kernels, "threads": torch.get_num_threads(), "extras": found}, indent=1))
        return
    facts.update(kernels)
    facts["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    facts.update({name: _version(name) or f"not installed: {use}" for name, use in EXTRAS.items()})
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(name, escape(fact))
    output.print(table)


def about() -> str:
    """One line: the version, and whether there are kernels."""
    kernels = _kernels()
    return f"mgqe {mgqe.__version__}, torch {torch.__version__}, kernels: {kernels['kernels']}"


def _kernels() -> dict[str, str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = ops.native_available()
    if found:
        threads = "threads of OpenMP" if ops.native_openmp() else "threads of its own"
        return {"kernels": f"{ops.native_isa()}, {threads}"}
    reason = str(told[0].message) if told else "off, as MGQE_NATIVE=0 says: pure torch"
    return {"kernels": reason}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
