"""The k rows of highest score with each query, found in the packed codes."""

from __future__ import annotations

import ctypes
from ctypes import addressof, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from mgqe.ops import reference_topk
from mgqe.ops._descriptor import TableBuffers
from mgqe.ops._library import LONG_ROWS, NOT_FINITE, OUT_OF_RANGE, OVERFLOW, check, library
from mgqe.ops._lookup import PreparedLookup
from mgqe.ops._topk_gpu import topk_on_gpu
from mgqe.ops._topk_job import BiasLevels, TopKJob

METHODS = {"auto": 0, "scan": 1, "filter": 2, "blocks": 3}


class CJob(ctypes.Structure):
    _fields_ = (
        ("queries", c_void_p),
        ("num_queries", c_int64),
        ("k", c_int64),
        ("bias", c_void_p),
        ("bias_codes", c_void_p),
        ("bias_levels", c_void_p),
        ("excluded", c_void_p),
        ("excluded_spans", c_void_p),
        ("num_excluded", c_int64),
        ("candidates", c_void_p),
        ("candidate_spans", c_void_p),
        ("num_candidates", c_int64),
        ("hidden", c_void_p),
        ("hidden_step", c_int64),
        ("scores", c_void_p),
        ("ids", c_void_p),
        ("rescored", c_void_p),
        ("row_squares", c_void_p),
        ("cosine", c_int32),
        ("method", c_int32),
    )


def topk(prepared: PreparedLookup, job: TopKJob, method: str = "auto") -> tuple[Tensor, Tensor, int]:
    """Exact top-K of a frozen table.

    A row's score is the sum over its subspaces, in their order and in float32, of <query piece, centroid>, which is
    summed over the piece's dimensions in theirs (a subspace of several pieces: piece by piece); then the bias is
    added, or, for cosine, the sum divided by the square root of the row's squared norm, which is summed in the same
    way. Every method, instruction set and the torch twin give the same bits. The row of ``padding_idx`` scores 0.

    Where rows are mean + coordinates @ matrix, coordinates meet matrix @ query, and <mean, query> is added to the
    partial scores of the first subspace. For cosine the squared norm is then that of the decoded row, and every row is
    scored.

    Args:
        prepared: the table.
        job: what to look for.
        method: "scan" scores every row, "filter" passes over rows that a byte sum shows to be too low, "blocks"
            passes over those that a matrix product of decoded rows shows to be; "auto" chooses. Where a method does
            not apply (codes of more than 8 bits, an instruction set without byte look-ups) rows are scored.

    Returns:
        scores float32 ``(B, k)`` falling, ids int64 ``(B, k)``, ascending among equal scores. Where fewer than k ids
        may be returned, the rest is -infinity and -1. And the number of rows scored exactly, in all.

    Raises:
        IndexError: an excluded or candidate id outside the table. ValueError: a query that holds NaN or infinity, or
            whose scores may leave float32; for cosine a row whose squared length does; a damaged tier map; shapes that
            do not fit.
    """
    table, descriptor, lib = prepared.table, prepared.descriptor, library()
    _check_shapes(table, job, descriptor is not None and lib is not None)
    if descriptor is None or lib is None:
        _check_lists(job, table.num_embeddings)
        _check_finite(job.queries)
        reference_topk.check_range(table, job)
        if prepared.gpu_table is not None and table.num_embeddings <= reference_topk.MAX_KEYED_IDS:
            return topk_on_gpu(table, job, prepared.gpu_table)
        return reference_topk.topk(table, job)
    shape = (job.queries.shape[0], job.k)
    scores = torch.empty(shape, dtype=torch.float32, device="cpu")
    ids = torch.empty(shape, dtype=torch.int64, device="cpu")
    rescored = c_int64(0)
    c_job = CJob(
        queries=job.queries.data_ptr(),
        num_queries=shape[0],
        k=job.k,
        scores=scores.data_ptr(),
        ids=ids.data_ptr(),
        rescored=addressof(rescored),
        cosine=job.cosine,
        method=METHODS[method],
    )
    if job.bias is not None:
        c_job.bias, c_job.bias_codes = job.bias.bias.data_ptr(), job.bias.codes.data_ptr()
        c_job.bias_levels = job.bias.levels.data_ptr()
    if job.excluded is not None and job.excluded.ids.numel():
        c_job.excluded, c_job.excluded_spans = job.excluded.ids.data_ptr(), job.excluded.spans.data_ptr()
        c_job.num_excluded = job.excluded.ids.numel()
    if job.candidates is not None:
        # An empty list has no address, but it is not the same as none.
        address = (job.candidates.ids if job.candidates.ids.numel() else job.candidates.spans).data_ptr()
        c_job.candidates, c_job.candidate_spans = address, job.candidates.spans.data_ptr()
        c_job.num_candidates = job.candidates.ids.numel()
    if job.hidden is not None:
        c_job.hidden = job.hidden.data_ptr()
        c_job.hidden_step = job.hidden.stride(0) if job.hidden.dim() == 2 else 0
    if job.cosine and table.matrix is not None:
        squares = prepared.row_squares()
        if squares is None:
            reference_topk.check_range(table, job)
        else:
            c_job.row_squares = squares.data_ptr()
    status = lib.mgqe_topk(descriptor.address, addressof(c_job), torch.get_num_threads())
    if status == OUT_OF_RANGE:
        _check_lists(job, table.num_embeddings)
    if status == NOT_FINITE:
        _check_finite(job.queries)
    if status in (OVERFLOW, LONG_ROWS):
        reference_topk.check_range(table, job)
    check(status)
    return scores, ids, rescored.value


def _check_finite(queries: Tensor) -> None:
    finite = torch.isfinite(queries).all(dim=1)
    if not bool(finite.all()):
        raise ValueError(f"query {int((~finite).nonzero()[0])} holds NaN or infinity")


def _check_shapes(table: TableBuffers, job: TopKJob, native: bool) -> None:
    """What the kernels could read beyond, were it too small."""
    n, count = table.num_embeddings, job.queries.shape[0]
    fits = {
        "queries": tuple(job.queries.shape) == (count, table.embedding_dim) and job.queries.dtype == torch.float32,
        "hidden": job.hidden is None or tuple(job.hidden.shape) in ((n,), (count, n)),
        "bias": job.bias is None or tuple(job.bias.bias.shape) == (n,),
        "bias levels": job.bias is None or not native or (job.bias.codes.numel(), job.bias.levels.numel()) == (n, 256),
        "spans": all(x is None or tuple(x.spans.shape) == (count, 2) for x in (job.excluded, job.candidates)),
    }
    if not all(fits.values()):
        wrong = ", ".join(name for name, right in fits.items() if not right)
        raise ValueError(f"the search's {wrong} do not fit {count} queries of a table of {n} x {table.embedding_dim}")


def _check_lists(job: TopKJob, num_embeddings: int) -> None:
    """Raise IndexError for the first excluded or candidate id outside the table, naming the argument and the query."""
    for name, lists in (("exclude", job.excluded), ("candidates", job.candidates)):
        if lists is None:
            continue
        begin, end = lists.spans.unbind(1)
        if bool(((begin < 0) | (begin > end) | (end > lists.ids.numel())).any()):
            raise ValueError(f"the spans of an id list must lie within its {lists.ids.numel()} ids")
        outside = ((lists.ids < 0) | (lists.ids >= num_embeddings)).nonzero()
        if not outside.numel():
            continue
        position = int(outside[0])
        queries = ((lists.spans[:, 0] <= position) & (position < lists.spans[:, 1])).nonzero().flatten().tolist()
        where = f" (of query {queries[0]})" if len(queries) == 1 and lists.spans.shape[0] > 1 else ""
        raise IndexError(
            f"{name} holds id {int(lists.ids[position])}{where}, but the table has the ids 0 to {num_embeddings - 1}: "
            "leave out ids that it does not have; -1 stands for no id in a tensor of shape (B, n) alone"
        )


def bias_levels(prepared: PreparedLookup, bias: Tensor) -> BiasLevels:
    """Biases float32 ``(N,)``, contiguous and finite, ready for :func:`topk`: a pass over the ids."""
    descriptor, lib = prepared.descriptor, library()
    if descriptor is None or lib is None:
        empty = bias.new_empty(0)
        return BiasLevels(bias, empty.to(torch.uint8), empty)
    codes = torch.empty(bias.shape[0], dtype=torch.uint8, device="cpu")
    levels = torch.empty(256, dtype=torch.float32, device="cpu")
    check(lib.mgqe_bias_codes(descriptor.address, bias.data_ptr(), codes.data_ptr(), levels.data_ptr()))
    return BiasLevels(bias, codes, levels)
