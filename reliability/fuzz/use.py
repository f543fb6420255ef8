"""Loads an artefact and uses all of it; the results are compared as one digest."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import mgqe
import mgqe_reader
from mgqe.files import consistent
from mgqe.ids import IdMap
from mgqe.recsys.train.artifacts import load_run as load_run
from mgqe.table.base import FrozenTable
from reliability.fuzz.both_readers import load_both, require_same_ids, require_same_table
from reliability.fuzz.models import Shop, Words

Verify = bool
MAX_IDS = 2000  # a table that hashes ids may have any number of ids
VERIFIES = {
    load: "verify" in inspect.signature(load).parameters for load in (mgqe.load, IdMap.load, mgqe.load_model, load_run)
}


class Digest:
    """A digest of all results of using an artefact."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, *values: Any) -> None:
        """Tensors and arrays by shape and bytes, other things by their repr."""
        for value in values:
            if isinstance(value, Tensor):
                value = value.detach().numpy()
            if isinstance(value, np.ndarray):
                self._hash.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
            else:
                self._hash.update(repr(value).encode())

    def get(self) -> bytes:
        """The digest, which is equal for equal results."""
        return self._hash.digest()


def _load(load: Callable[..., Any], *arguments: Any, verify: Verify) -> Any:
    return load(*arguments, verify=True) if verify and VERIFIES[load] else load(*arguments)


def use_table(folder: Path, verify: Verify) -> bytes:
    """The digest of a frozen table: rows, bags, top-K, and the file to which it is saved."""
    index = folder if _is_sharded(folder) else folder / "table.safetensors"
    table: FrozenTable
    table, without_torch = load_both(partial(_load, mgqe.load, verify=verify), mgqe_reader.load, index)
    digest = Digest()
    n = min(table.num_embeddings, MAX_IDS)
    ids = torch.arange(n)
    rows = table.lookup(ids)
    if isinstance(table, mgqe.CompactTable):
        require_same_table(without_torch, table, rows)
    digest.add(table.num_embeddings, table.embedding_dim, table.padding_idx, rows)
    if n:
        digest.add(table.bag(ids, torch.tensor([0, n // 2]), mode="mean"), table.bag(ids[None], mode="max"))
    if isinstance(table, mgqe.CompactTable):
        if table.fallback is not None:
            digest.add(table.lookup(torch.tensor([table.num_embeddings, -1])))
        if n:
            try:
                _search(table, rows, digest)
            except ValueError as error:
                if "may leave float32" not in str(error):  # centroids of 1e38 can be looked up but not multiplied
                    raise
                digest.add(error)
    copy = folder / "saved-again"
    mgqe.save(table, copy)
    digest.add(copy.read_bytes())
    return digest.get()


def _is_sharded(folder: Path) -> bool:
    return any(name.startswith("shard-") for name in os.listdir(folder))


def _search(table: mgqe.CompactTable, rows: Tensor, digest: Digest) -> None:
    n = table.num_embeddings
    k, queries = min(5, n), rows[[0, n - 1]]
    ids = torch.arange(0, n, 2)
    digest.add(*table.topk(queries, k))
    digest.add(*table.topk(queries, k, candidates=ids, exclude=torch.tensor([[0, n - 1], [n // 2, -1]])))
    mask = torch.ones(n, dtype=torch.bool)
    mask[n // 2] = False
    digest.add(*table.topk(queries[:1], k, candidates=mask, bias=torch.arange(float(n))))


def use_id_map(folder: Path, verify: Verify) -> bytes:
    """The digest of an id map: its ids, rows and counts, and the file to which it is saved."""
    load = partial(_load, IdMap.load, verify=verify)
    ids, without_torch = load_both(load, mgqe_reader.IdMap.load, folder / "ids.safetensors")
    if verify:
        ids.validate()
        require_same_ids(without_torch, ids)
    digest = Digest()
    rows = torch.arange(len(ids))
    digest.add(len(ids), ids.kind, ids.interactions, ids.distinct, ids.counts, ids.share(1))
    if ids.nbytes_by_part().get("ids.hashes") is None:
        external = ids.ids(rows)
        digest.add(external, ids.rows(external, unknown=-1))
    unknown = {"string": ["?"], "binary": [b"?"]}.get(ids.kind) or np.array([1], ids.kind)
    digest.add(ids.rows(unknown, unknown=-1))
    ids.save(folder / "saved-again")
    digest.add((folder / "saved-again").read_bytes())
    return digest.get()


def use_model(folder: Path, verify: Verify) -> bytes:
    """The digest of a model: its forward pass. If loading fails, the model must not have changed."""
    model = (Shop if any(name.startswith("tags") for name in os.listdir(folder)) else Words)()
    before = _state(model)
    try:
        _load(mgqe.load_model, model, folder, verify=verify)
    except Exception:
        if _state(model) != before:
            raise RuntimeError("load_model raised an error and had changed the model") from None
        raise
    digest = Digest()
    with torch.no_grad():
        digest.add(model(), sorted(model.state_dict()), model.training)
    return digest.get()


def _state(model: nn.Module) -> list[Any]:
    parts = [(path, id(module), sorted(module._parameters)) for path, module in model.named_modules()]
    return [parts, [(name, id(value), value._version) for name, value in model.named_parameters()]]


def use_run(folder: Path, verify: Verify) -> bytes:
    """The digest of a finished run: the scores of the loaded model."""
    with patch.object(consistent, "ATTEMPTS", 0):  # missing files are not about to be written, so do not wait for them
        model = _load(load_run, folder, verify=verify)
    digest = Digest()
    with torch.no_grad():
        users, items = torch.arange(60), torch.arange(80)[:60]
        digest.add(model(users, items), sorted(model.state_dict()))
    return digest.get()


USES: dict[str, Callable[[Path, Verify], bytes]] = {"id map": use_id_map, "model": use_model, "run": use_run}


def use(kind: str, folder: Path, verify: Verify) -> bytes:
    """Load the artefact in the folder, use all of it, and return a digest of the results."""
    return USES.get(kind.split(",")[0], use_table)(folder, verify)
