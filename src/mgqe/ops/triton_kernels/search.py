"""Which rows may be among the best of a query: scored from packed codes, and kept where they beat a threshold.

No matrix of scores is written. Scores have the bits of :mod:`mgqe.ops.triton_kernels.scores`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.triton_kernels.codes import read_codes
from mgqe.ops.triton_kernels.on_device import on_its_gpu
from mgqe.ops.triton_kernels.scores import Scorer
from mgqe.ops.triton_kernels.tuning import tuned

QUERIES = 16  # of a program, fewer where there are fewer: they share the codes that it reads
FIELDS = tl.constexpr(4)  # of each code of an entry; see mgqe.ops.triton_kernels.scores
LAST_ID = tl.constexpr(2**32 - 1)  # MAX_KEYED_IDS of mgqe.ops.reference_topk


@tuned(
    {"IDS": 64, "num_warps": 4},
    {"IDS": 64, "num_warps": 2},
    {"IDS": 128, "num_warps": 4},
    {"IDS": 256, "num_warps": 8},
    key=("num_subspaces", "num_partial", "HAS_ENTRIES", "QUERIES"),
    rows="num_ids",
    zeroed=["counts"],  # what is kept is written again, in as many places
)
@triton.jit(
    do_not_specialize=[
        "num_ids",
        "num_queries",
        "num_subspaces",
        "num_partial",
        "first_id",
        "padding_idx",
        "allowed_step",
        "room",
    ]
)
def _keep(
    entries,
    places,
    addresses,
    row_bytes,
    fields,
    partial,
    roots,
    bias,
    allowed,
    thresholds,
    counts,
    kept,
    num_ids,
    num_queries,
    num_subspaces,
    num_partial,
    first_id,
    padding_idx,
    allowed_step,
    room,
    HAS_ENTRIES: tl.constexpr,
    HAS_ROOTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    IDS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Appends the keys of scores and ids that are above a query's threshold to its list, as many as there is room."""
    at = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    query = tl.program_id(1).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    inside, asked = at < num_ids, query < num_queries
    both = inside[:, None] & asked[None, :]
    entry = tl.load(entries + at, mask=inside, other=0).to(tl.int64)
    size = tl.load(row_bytes + entry, mask=inside, other=0)
    row = tl.load(addresses + entry, mask=inside, other=0)
    row += tl.load(places + at, mask=inside, other=0) * size
    score, nothing = tl.zeros((IDS, QUERIES), tl.float32), tl.zeros((IDS,), tl.int64)
    # The partial scores of these queries lie together, those of a code in one run: loads of 16 bytes, by way of the
    # caches. Blocks of them kept on the chip would be read by tl.gather, which Triton compiles to shuffles within a
    # warp: of 256 centroids eight shuffles and seven selects for each score, where such a load brings four scores.
    partial += tl.program_id(1).to(tl.int64) * num_partial * QUERIES
    lane = tl.arange(0, QUERIES)
    for j in range(0, num_subspaces):
        if HAS_ENTRIES:
            field = fields + (entry * num_subspaces + j) * FIELDS
            bits = tl.load(field + 1, mask=inside, other=-1)
            there = bits >= 0  # entries may have fewer codes than others
            bit, begin = tl.load(field, mask=there, other=0), tl.load(field + 2, mask=there, other=0)
            last = tl.load(field + 3, mask=there, other=0)
        else:  # one load for all ids
            there = inside
            bit, bits = tl.load(fields + j * FIELDS) + nothing, tl.load(fields + j * FIELDS + 1) + nothing
            begin, last = tl.load(fields + j * FIELDS + 2), tl.load(fields + j * FIELDS + 3)
        code = tl.minimum(read_codes(row, size, bit, tl.maximum(bits, 0), there), last)
        place = partial + (begin + code)[:, None] * QUERIES + lane[None, :]
        score += tl.load(place, mask=there[:, None], other=0.0)
    if HAS_ROOTS:
        root = tl.load(roots + at, mask=inside, other=0.0)[:, None] + tl.zeros_like(score)
        score = tl.where(root > 0.0, tl.div_rn(score, tl.where(root > 0.0, root, 1.0)), 0.0)
    score = tl.where((first_id + at == padding_idx)[:, None], 0.0, score)
    if HAS_BIAS:
        score += tl.load(bias + first_id + at, mask=inside, other=0.0)[:, None]
    may = both & (score == score)
    if HAS_ALLOWED:
        may = may & (tl.load(allowed + query[None, :] * allowed_step + at[:, None], mask=both, other=0) != 0)
    rising = (score + 0.0).to(tl.int32, bitcast=True)  # -0 has the bits of 0
    rising = tl.where(rising >= 0, rising, rising ^ 0x7FFFFFFF)
    falling = tl.zeros_like(at) + LAST_ID - first_id - at
    key = (rising.to(tl.int64) << 32) | falling[:, None]
    passes = (may & (key > tl.load(thresholds + query, mask=asked, other=0)[None, :])).to(tl.int32)
    number = tl.sum(passes, 0)
    if tl.max(number, 0) > 0:
        before = tl.atomic_add(counts + query, number, mask=asked & (number > 0))
        place = tl.where(number > 0, before, 0)[None, :] + tl.cumsum(passes, 0) - 1
        tl.store(kept + query[None, :] * room + place, key, mask=(passes > 0) & (place < room))


@on_its_gpu
def keep_above(
    scorer: Scorer,
    first: int,
    ids: Tensor,
    thresholds: Tensor,
    room: int,
    padding_idx: int,
    roots: Tensor | None,
    bias: Tensor | None,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Keys of the scores of ids that are above the queries' thresholds.

    Args:
        scorer: the partial scores of B queries.
        first, ids: int64 (n,), one after another from the first on.
        thresholds: int64 (B,), keys; see :func:`mgqe.ops.reference_topk.keys_of`.
        room: for how many keys of each query.
        padding_idx: the id whose score is 0; -1 for none.
        roots: float32 (n,), what scores are divided by; where it is 0 the score is.
        bias: float32 (N,), added to the scores.
        allowed: bool (1, n) or (B, n), which ids a query may get.

    Returns:
        int64 (B, room), the least number where there is none, in no order; and int32 (B,), how many there were: where
        these are more than there is room for, some are missing.
    """
    queries, device = scorer.partial.shape[0], ids.device
    kept = torch.full((queries, room), torch.iinfo(torch.int64).min, dtype=torch.int64, device=device)
    counts = torch.zeros(queries, dtype=torch.int32, device=device)
    together = min(QUERIES, triton.next_power_of_2(queries))
    entries, places, addresses, row_bytes = scorer.table.place(ids)
    _keep[lambda shape: (triton.cdiv(ids.shape[0], shape["IDS"]), triton.cdiv(queries, together))](
        entries,
        places,
        addresses,
        row_bytes,
        scorer.fields,
        scorer.by_block(together),
        kept if roots is None else roots,
        kept if bias is None else bias,
        kept if allowed is None else allowed.view(torch.uint8),
        thresholds,
        counts,
        kept,
        ids.shape[0],
        queries,
        scorer.fields.shape[1],
        scorer.partial.shape[1],
        first,
        padding_idx,
        0 if allowed is None or allowed.shape[0] == 1 else ids.shape[0],
        room,
        HAS_ENTRIES=scorer.fields.shape[0] > 1,
        HAS_ROOTS=roots is not None,
        HAS_BIAS=bias is not None,
        HAS_ALLOWED=allowed is not None,
        QUERIES=together,
    )
    return kept, counts
