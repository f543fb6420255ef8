"""Top-K as users ask for it: queries, exclusions and candidates in their usual forms -> what the kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgqe import ops
from mgqe.checks.ids import FLOAT_DTYPES, as_int64, check_dense, check_device
from mgqe.checks.scalars import as_int, as_ints, is_sequence

SCORES = ("dot", "cosine")
Ids = Tensor | np.ndarray | Sequence[Any]  # of ids, or of tensors, arrays or lists of ids

# Candidates beyond this share of the table are cheaper to filter out of a scan than to fetch one by one.
SCAN_FROM = 1 / 64


class TopK(NamedTuple):
    """What a search returns; both (B, k), or (k,) for a single query."""

    scores: Tensor
    ids: Tensor


class ItemBias:
    """Biases of a table's ids, sorted once into levels that the search can skip by; see ``table.item_bias``."""

    def __init__(self, levels: ops.BiasLevels, prepared: ops.PreparedLookup) -> None:
        self._levels = levels
        self._prepared = prepared

    @property
    def bias(self) -> Tensor:
        """float32 (N,)."""
        return self._levels.bias

    def of(self, prepared: ops.PreparedLookup) -> ops.BiasLevels:
        """The levels, which must fit this state of the table."""
        if _positions(self._prepared) != _positions(prepared):
            raise ValueError("the item bias was made for another table, or before ids were appended: make it again")
        return self._levels


def _positions(prepared: ops.PreparedLookup) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What decides where an id's row is: the sizes of the tiers, and the tier map, by its address."""
    return tuple(prepared.table.sizes), tuple(words.data_ptr() for words in prepared.table.map_bits)


def item_bias(prepared: ops.PreparedLookup, bias: Tensor) -> ItemBias:
    """Checks biases (N,) and sorts them into levels."""
    n, device = prepared.table.num_embeddings, prepared.table.device
    if not isinstance(bias, Tensor) or bias.dtype not in (*FLOAT_DTYPES, torch.float64):
        raise TypeError(f"bias must be a float tensor, got {_kind(bias)}: use torch.as_tensor, .float()")
    check_dense(bias, "bias")
    if tuple(bias.shape) != (n,):
        raise ValueError(f"bias must have one number per id, shape ({n},), got {tuple(bias.shape)}")
    if bias.device != device:
        raise ValueError(f"bias is on {bias.device}, the table on {device}: move one with .to()")
    values = bias.detach().to(torch.float32).contiguous()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("bias holds NaN or infinity: leave ids out with exclude instead")
    return ItemBias(ops.bias_levels(prepared, values), prepared)


def search(
    prepared: ops.PreparedLookup,
    queries: Tensor,
    k: int,
    exclude: Ids | None = None,
    candidates: Ids | None = None,
    score: str = "dot",
    bias: Tensor | ItemBias | None = None,
    method: str = "auto",
) -> TopK:
    """``table.topk``, on one state of a table."""
    n, device = prepared.table.num_embeddings, prepared.table.device
    rows = _queries(queries, prepared.table.embedding_dim, device)
    k = _checked_k(k, n)
    if score not in SCORES:
        raise ValueError(f"score must be one of {SCORES}, got {score!r}")
    if method not in ops.TOPK_METHODS:
        raise ValueError(f"method must be one of {tuple(ops.TOPK_METHODS)}, got {method!r}")
    if bias is not None and score == "cosine":
        raise ValueError("bias goes with score='dot': a cosine has no scale that a bias could be added on")
    if score == "cosine":
        rows = _unit(rows)
    count = rows.shape[0]
    exclude, candidates = _tensors(exclude, device), _tensors(candidates, device)
    excluded, hidden = _exclusions(exclude, count, n, device)
    wanted = _candidates(candidates, count, n, device)
    if isinstance(wanted, Tensor):
        hidden = ~wanted if hidden is None else ~wanted | hidden
        wanted = None
    levels = None
    if bias is not None:
        levels = (bias if isinstance(bias, ItemBias) else item_bias(prepared, bias)).of(prepared)
    job = ops.TopKJob(rows, k, score == "cosine", levels, excluded, wanted, hidden)
    scores, ids, _ = ops.topk(prepared, job, method)
    return TopK(scores[0], ids[0]) if queries.dim() == 1 else TopK(scores, ids)


def _tensors(ids: Any, device: torch.device) -> Any:
    """NumPy's arrays, alone or in a list, as tensors on the table's device; anything else unchanged."""
    if isinstance(ids, np.ndarray) and ids.ndim:
        return torch.as_tensor(ids, device=device)
    if isinstance(ids, (list, tuple)):
        return [_tensors(entry, device) for entry in ids]
    return ids


def _queries(queries: Tensor, dim: int, device: torch.device) -> Tensor:
    """Queries as contiguous float32 (B, d). NaN and infinity are refused by the search, which reads all of it."""
    if not isinstance(queries, Tensor) or queries.dtype not in FLOAT_DTYPES:
        remedy = "use .float()" if isinstance(queries, Tensor) else "use torch.as_tensor(queries)"
        raise TypeError(f"queries must be a float32, float16 or bfloat16 tensor, got {_kind(queries)}: {remedy}")
    check_dense(queries, "queries")
    if queries.dim() not in (1, 2) or queries.shape[-1] != dim:
        raise ValueError(f"queries must have shape ({dim},) or (B, {dim}), got {tuple(queries.shape)}")
    if queries.device != device:
        raise ValueError(f"queries are on {queries.device}, the table on {device}: move one with .to()")
    return queries.detach().to(torch.float32).reshape(-1, dim).contiguous()


def _checked_k(k: int, n: int) -> int:
    k = as_int("k", k)
    if n == 0:
        raise ValueError("the table has no rows to search")
    if not 1 <= k <= n:
        raise ValueError(f"k must be in 1 .. {n}, the rows of the table, got {k}")
    return k


def _unit(rows: Tensor) -> Tensor:
    """Rows divided by their lengths; rows of zeros stay. In double precision: squares of large numbers overflow."""
    wide = rows.double()
    norms = wide.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norms).all()):
        raise ValueError(f"query {int((~torch.isfinite(norms)).nonzero()[0, 0])} holds NaN or infinity")
    return torch.where(norms > 0, wide / norms, 0.0).to(torch.float32)


def _exclusions(
    exclude: Ids | None, count: int, n: int, device: torch.device
) -> tuple[ops.IdLists | None, Tensor | None]:
    """Id lists, or a mask of ids that are hidden."""
    if exclude is None:
        return None, None
    if isinstance(exclude, Tensor) and exclude.dtype == torch.bool:
        return None, _mask("exclude", exclude, count, n, device)
    return _id_lists("exclude", exclude, count, device), None


def _candidates(candidates: Ids | None, count: int, n: int, device: torch.device) -> ops.IdLists | Tensor | None:
    """Id lists, or a mask of the ids allowed where that is cheaper."""
    if candidates is None:
        return None
    if isinstance(candidates, Tensor) and candidates.dtype == torch.bool:
        return _mask("candidates", candidates, count, n, device)
    lists = _id_lists("candidates", candidates, count, device)
    shared = isinstance(candidates, Tensor) and candidates.dim() == 1
    if not shared or lists.ids.numel() <= SCAN_FROM * n:
        return lists
    low, high = torch.aminmax(lists.ids)
    if low < 0 or high >= n:
        return lists  # the search names the id that is out of range
    allowed = torch.zeros(n, dtype=torch.bool, device=device)
    allowed[lists.ids] = True
    return allowed


def _mask(name: str, mask: Tensor, count: int, n: int, device: torch.device) -> Tensor:
    check_dense(mask, name)
    if tuple(mask.shape) not in ((n,), (count, n)):
        raise ValueError(f"a mask for {name} must have shape ({n},) or ({count}, {n}), got {tuple(mask.shape)}")
    if mask.device != device:
        raise ValueError(f"{name} is on {mask.device}, the table on {device}: move one with .to()")
    return mask.contiguous()


def _id_lists(name: str, listed: Ids, count: int, device: torch.device) -> ops.IdLists:
    """(n,) ids for all queries; (B, n) ids per query, -1 for no id; or B tensors of ids."""
    if isinstance(listed, (list, tuple)) and not any(isinstance(ids, Tensor) for ids in listed):
        listed = _of_numbers(name, listed, device)
    if isinstance(listed, Tensor):
        listed = _on(name, as_int64(listed, name), device)
        if listed.dim() == 1:
            ids = listed.contiguous()
            spans = torch.tensor([[0, ids.numel()]], device=device).expand(count, 2)
            return ops.IdLists(ids, spans.contiguous())
        if listed.dim() != 2 or listed.shape[0] != count:
            raise ValueError(f"{name} must have shape (n,) or ({count}, n), got {tuple(listed.shape)}")
        listed = [row[row != -1] for row in listed]
    elif not isinstance(listed, Sequence):
        raise TypeError(f"{name} must be a tensor of ids, a list of such tensors, or a bool mask, got {_kind(listed)}")
    if len(listed) != count:
        raise ValueError(f"{name} must be a tensor of ids, or one such tensor per query, {count}, got {len(listed)}")
    lists = [_on(name, as_int64(ids, f"{name}[{i}]"), device).reshape(-1) for i, ids in enumerate(listed)]
    ends = torch.tensor([0, *(len(ids) for ids in lists)], device="cpu").cumsum(0)
    ids = torch.cat(lists) if lists else torch.empty(0, dtype=torch.int64, device=device)
    return ops.IdLists(ids, torch.stack([ends[:-1], ends[1:]], dim=1).contiguous())


def _of_numbers(name: str, listed: Sequence[Any], device: torch.device) -> list[Tensor]:
    """A list of ids per query as tensors. One flat list could be meant for all queries or have one id for each."""
    if not all(is_sequence(ids) for ids in listed):
        raise TypeError(f"{name} must be a tensor of ids, or a list of ids per query, got {listed!r}: use torch.tensor")
    lists = [as_ints(f"{name}[{i}]", ids) for i, ids in enumerate(listed)]
    return [torch.tensor(ids, dtype=torch.int64, device=device) for ids in lists]


def _on(name: str, ids: Tensor, device: torch.device) -> Tensor:
    check_device(ids, device, f"ids of {name}")
    return ids


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
