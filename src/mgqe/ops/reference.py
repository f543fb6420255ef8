"""Pure-torch twins of the native kernels: the oracle in tests, the path for CUDA and without a compiler.

Inputs are already checked by the callers in this package. :func:`assign`, :func:`gather` and :func:`lookup`
agree with the native kernels bit for bit, :func:`scatter` up to rounding. They are complete, not fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mgqe.checks.waiting import reads_wait
from mgqe.ops._descriptor import TableBuffers
from mgqe.ops.flat_index import flat_index
from mgqe.ops.layout.packed_format import WORDS_PER_BLOCK
from mgqe.ops.layout.pieces import Piece

# Scores held at once. Torch temporaries much above the caches are slow and erratic.
_SCORES_AT_ONCE = 1 << 20
_IDS_AT_ONCE = 1 << 11

# The bits of a float64 number that float32 cuts off, and those of the middle of two float32 numbers.
_CUT_OFF, _MIDDLE = (1 << 29) - 1, 1 << 28
_SUBNORMAL = 2.0**-126

# Squared distances of a row whose squared length is so many times that of the longest centroid would all be equal.
_FAR = 2.0**40


def _squared_lengths(values: Tensor) -> Tensor:
    """``(..., s)`` to ``(...)``, summed over s in order."""
    total = torch.zeros_like(values[..., 0])
    for t in range(values.shape[-1]):
        total = total + values[..., t] * values[..., t]
    return total


def assign(rows: Tensor, centroids: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest centroids, or argmin_k bias[j, k] - <rows[i, j], centroids[j, k]>; see :func:`mgqe.ops.assign`.

    No matrix product here: its rounding depends on the shape of the whole batch, and a row's code must not.
    """
    num_subspaces, num_centroids, width = centroids.shape
    n = rows.shape[0]
    pieces = rows.reshape(n, num_subspaces, width)
    codes = torch.empty(n, num_subspaces, dtype=torch.int32, device=rows.device)
    step = max(1, _SCORES_AT_ONCE // (num_subspaces * num_centroids))
    for at in range(0, n, step):
        chunk = pieces[at : at + step]
        scores = _distances(chunk, centroids) if bias is None else _responses(chunk, centroids, bias)
        codes[at : at + step] = _argmin_ignoring_nan(scores).to(torch.int32)
    return codes


def wide(values: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return values if values.device.type == "mps" else values.double()


def _distances(pieces: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances ``(n, D, K)`` of rows ``(n, D, s)``; of far rows less a number that all K share.

    Far rows are compared by their products with the centroids, both less the middle m of the centroids:
    ||x - c||^2 - ||x - m||^2 = <c - m, c - (2 x - m)>.
    """
    finite = torch.where(centroids.isfinite(), centroids, 0.0)
    middle = 0.5 * finite.amin(dim=1) + 0.5 * finite.amax(dim=1)
    longest = _squared_lengths(wide(finite) - wide(middle)[:, None]).amax(dim=1)
    values, shift = wide(pieces), wide(middle)
    lengths = _squared_lengths(values - shift)
    far = ((lengths > _FAR * longest) & (lengths < torch.inf)).unsqueeze(-1)
    left, right = torch.where(far, shift, values), torch.where(far, 2.0 * values - shift, values)
    scores = values.new_zeros(pieces.shape[0], *centroids.shape[:2])
    for t in range(centroids.shape[2]):
        centroid = wide(centroids[:, :, t])
        scores = scores + (centroid - left[:, :, t, None]) * (centroid - right[:, :, t, None])
    return scores


def _responses(pieces: Tensor, centroids: Tensor, bias: Tensor) -> Tensor:
    """bias[j, k] - <rows[i, j], centroids[j, k]>: ``(n, D, K)``."""
    scores = wide(bias).expand(pieces.shape[0], -1, -1)
    for t in range(centroids.shape[2]):
        scores = scores - wide(pieces[:, :, t, None]) * wide(centroids[:, :, t])
    return scores


def _argmin_ignoring_nan(scores: Tensor) -> Tensor:
    """Lowest index of the least score on the last axis; NaN loses even against +inf, all NaN gives 0."""
    number = ~scores.isnan()
    usable = torch.where(number, scores, torch.inf)
    lowest = usable.eq(usable.amin(dim=-1, keepdim=True)).logical_and_(number)
    # argmax of 0/1 picks the first 1, and 0 where there is none.
    return lowest.to(torch.uint8).argmax(dim=-1)


def gather(codes: Tensor, codebook: Tensor) -> Tensor:
    """Rows ``(n, d)`` from codes ``(n, D)`` and a codebook ``(Dc, Kc, sc)``; see :func:`mgqe.ops.gather`."""
    n, num_subspaces = codes.shape
    pieces, _, width = codebook.shape
    if pieces == 1:
        return codebook[0][codes.long()].reshape(n, num_subspaces * width)
    spread = codes.long().repeat_interleave(pieces // num_subspaces, dim=1)
    piece = torch.arange(pieces, device=codes.device)
    return codebook[piece, spread].reshape(n, pieces * width)


def decode_error(rows: Tensor, codes: Tensor, codebook: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decoded rows, their weighted errors and losses; see :func:`mgqe.ops.decode_error`."""
    decoded = gather(codes, codebook)
    difference = rows - decoded
    errors = weights[:, None] * difference
    return decoded + (rows - rows), errors, (errors * difference).sum(1)


def scatter(
    grad: Tensor, codes: Tensor, weights: Tensor | None, pieces: int, num_centroids: int, width: int
) -> tuple[Tensor, Tensor]:
    """Transpose of :func:`gather`: sums ``(Dc, Kc, sc)`` and counts ``(Dc, Kc)`` an entry was chosen for."""
    n, num_subspaces = codes.shape
    entry = codes.long()
    if pieces > 1:
        entry = entry.repeat_interleave(pieces // num_subspaces, dim=1)
        entry = entry + torch.arange(pieces, device=codes.device) * num_centroids
    flat = entry.reshape(-1)
    values = grad.reshape(n, entry.shape[1], width)
    ones = torch.ones(n, dtype=grad.dtype, device=grad.device) if weights is None else weights
    values = values * ones[:, None, None]
    sums = torch.zeros(pieces * num_centroids, width, dtype=grad.dtype, device=grad.device)
    counts = torch.zeros(pieces * num_centroids, dtype=grad.dtype, device=grad.device)
    sums.index_add_(0, flat, values.reshape(-1, width))
    counts.index_add_(0, flat, ones[:, None].expand(n, entry.shape[1]).reshape(-1))
    return sums.reshape(pieces, num_centroids, width), counts.reshape(pieces, num_centroids)


def unique(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids, inverse and counts, in order of first appearance."""
    values, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    position = torch.arange(ids.shape[0], device=ids.device)
    first = torch.full_like(values, ids.shape[0]).scatter_reduce_(0, inverse, position, "amin")
    order = first.argsort()
    new_index = torch.empty_like(order)
    new_index[order] = torch.arange(order.shape[0], device=ids.device)
    return values[order], new_index[inverse], counts[order]


def sort_by_tier(
    uniq: Tensor, inverse: Tensor, counts: Tensor, sizes: Sequence[int], tier_of: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """The result of :func:`unique`, sorted by tier, and how many distinct ids each tier has."""
    if tier_of is None:
        ends = torch.tensor([*accumulate(sizes)][:-1], dtype=torch.int64, device=uniq.device)
        tier = torch.bucketize(uniq, ends, right=True)
    else:
        tier = tier_of[uniq].long()
    order = tier.argsort(stable=True)
    new_index = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
    return uniq[order], new_index[inverse], counts[order], torch.bincount(tier, minlength=len(sizes)).tolist()


def codes_of(packed: Tensor, num_subspaces: int, bits: int | Sequence[int]) -> Tensor:
    """int64 codes ``(n, D)`` of packed rows ``(n, row_bytes)``; ``bits`` of all codes, or of each."""
    n = packed.shape[0]
    # A code of 16 bits reaches into the second byte after the one it starts in; a code without bits may start there.
    padded = torch.cat([packed, packed.new_zeros(n, 3)], dim=1).long()
    if isinstance(bits, int):
        at: Tensor = torch.arange(num_subspaces, device=packed.device) * bits
        mask: int | Tensor = (1 << bits) - 1
    else:
        at = torch.tensor([0, *accumulate(bits)][:-1], dtype=torch.int64, device=packed.device)
        mask = torch.tensor([(1 << b) - 1 for b in bits], dtype=torch.int64, device=packed.device)
    low = at >> 3
    word = padded[:, low] | (padded[:, low + 1] << 8) | (padded[:, low + 2] << 16)
    return (word >> (at & 7)) & mask


def assign_mixed(coordinates: Tensor, codebook: Tensor, layout: Sequence[Piece]) -> Tensor:
    """Nearest centroids of each subspace ``(n, D)``; see :func:`mgqe.ops.assign_mixed`."""
    codes = torch.zeros((coordinates.shape[0], len(layout)), dtype=torch.int32, device=coordinates.device)
    for j, piece in enumerate(layout):
        if piece.bits:
            rows = coordinates[:, piece.coordinate : piece.coordinate + piece.width]
            book = codebook[piece.entry : piece.entry + (piece.width << piece.bits)].reshape(1, -1, piece.width)
            codes[:, j] = assign(rows, book, None)[:, 0]
    return codes


def gather_mixed(codes: Tensor, codebook: Tensor, layout: tuple[Piece, ...]) -> Tensor:
    """Coordinates ``(n, L)`` from codes ``(n, D)`` and a flat codebook whose subspaces lie as ``layout`` says."""
    return codebook[flat_index(layout, codebook.device).places(codes)]


def multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of float32, rounded once, as the instruction does it.

    The product is exact in float64, and the sum is nearly always the right one there: rounding it to float32 is wrong
    only from the middle of two float32 numbers, where a sum may have been rounded to. Where some sum is there, all are
    rounded to odd first (Boldo and Melquiond, 2008: the last bit is set where anything is cut off), after which
    rounding to float32 is right.
    """
    if a.device.type == "mps":  # has no float64
        return a * b + c
    if not torch.compiler.is_compiling() and a.device.type == "cpu" and not reads_wait(a.device):
        total = torch.addcmul(c.double(), a.double(), b.double())
        rounded = total.float()
        if not _is_in_the_middle(total.detach(), rounded.detach()):
            return rounded
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    other = total - product
    cut = (product - (total - other)) + (addend - other)
    even = (total.view(torch.int64) & 1) == 0
    moved = torch.nextafter(total, torch.where(cut > 0, torch.inf, -torch.inf).to(total.dtype))
    return torch.where(even & ((cut > 0) | (cut < 0)), moved, total).float()


def _is_in_the_middle(total: Tensor, rounded: Tensor) -> bool:
    """Whether some float64 number may be in the middle of two float32 numbers; all are so between subnormal ones."""
    if bool(((total.view(torch.int64) & _CUT_OFF) == _MIDDLE).any()):
        return True
    size = rounded.abs()
    return bool(((size < _SUBNORMAL) & (total != 0)).any())


def transform(coordinates: Tensor, mean: Tensor, matrix: Tensor, column_scales: Tensor | None = None) -> Tensor:
    """mean + coordinates @ matrix: ``(n, L)``, float32 ``(d,)`` or ``(n, d)``, ``(L, d)`` -> ``(n, d)``.

    The products are added to the mean in the order of coordinates, each sum rounded once. With column scales ``(d,)``
    they are added to 0; the sum is multiplied with its column's scale, and the mean added, each rounded.
    """
    if column_scales is not None:
        return mean + transform(coordinates, torch.zeros_like(column_scales), matrix) * column_scales
    rows = mean.expand(coordinates.shape[0], -1)
    for k in range(matrix.shape[0]):
        rows = multiply_add(coordinates[:, k, None], matrix[k], rows)
    return rows


def transform_whole(coordinates: Tensor, mean: Tensor, matrix: Tensor, column_scales: Tensor) -> Tensor:
    """The same of coordinates and a matrix of whole numbers, as stored ones are: their sums are exact in any order."""
    exact = torch.float32 if matrix.device.type == "mps" else torch.float64
    return mean + (coordinates.to(exact) @ matrix.to(exact)).float() * column_scales


def tiers_and_ranks(ids: Tensor, table: TableBuffers) -> tuple[Tensor, Tensor]:
    """Tier and rank within the tier of flat ids, both int64."""
    starts = torch.tensor([0, *accumulate(table.sizes)][:-1], device=ids.device)
    range_tier = torch.bucketize(ids, starts, right=True) - 1
    range_rank = ids - starts[range_tier]
    if not table.map_bits:
        return range_tier, range_rank
    mapped = ids < table.mapped_ids
    tier, rank = locate_in_map(torch.where(mapped, ids, 0), table.order, table.map_bits, table.map_ranks)
    if table.splits:
        tier, rank = in_entries(tier, rank, table.sizes, table.splits)
    return torch.where(mapped, tier, range_tier), torch.where(mapped, rank, range_rank)


def in_entries(tier: Tensor, rank: Tensor, sizes: Sequence[int], splits: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Tier and rank in it -> which entry of ``sizes``, and the row there, both int64; see :class:`TableBuffers`."""
    starts = torch.tensor([*accumulate(sizes[: sum(splits)], initial=0)][:-1], dtype=torch.int64, device=tier.device)
    firsts = torch.tensor([*accumulate(splits, initial=0)][:-1], dtype=torch.int64, device=tier.device)
    position = starts[firsts[tier]] + rank
    entry = torch.bucketize(position, starts, right=True) - 1
    return entry, position - starts[entry]


def locate_in_map(
    ids: Tensor, order: Sequence[int], map_bits: Sequence[Tensor], map_ranks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Tier and rank within the tier, both int64, of ids that a tier map knows; see :class:`TableBuffers`."""
    tier, rank, index = torch.full_like(ids, order[-1]), ids, ids
    undecided = torch.ones_like(ids, dtype=torch.bool)
    for target, words, ranks in zip(order, map_bits, map_ranks):
        if words.numel() == 0:  # the tier of every id is known
            break
        bit, ones = _bit_and_ones(words, ranks, index)
        chosen = undecided & bit
        tier, rank = torch.where(chosen, target, tier), torch.where(chosen, ones, rank)
        undecided = undecided & ~bit
        # Ids whose tier is known keep an index of 0, which every level that has ids can answer.
        index = torch.where(undecided, index - ones, 0)
    return tier, torch.where(undecided, index, rank)


def _bit_and_ones(words: Tensor, ranks: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The bit at ``index`` (bool) and the number of ones before it (int64)."""
    word, offset = index >> 6, index & 63
    current = words[word]
    ones = ranks[index >> 8].to(torch.int64) + popcount(current & ((1 << offset) - 1))
    for back in range(1, WORDS_PER_BLOCK):  # whole words of the same block before this one
        before = (word & (WORDS_PER_BLOCK - 1)) >= back
        ones = ones + torch.where(before, popcount(words[(word - back).clamp(min=0)]), 0)
    return ((current >> offset) & 1).to(torch.bool), ones


def popcount(words: Tensor) -> Tensor:
    """Set bits of each int64 word, as int64. The shifts are arithmetic; the masks clear the copied sign bits."""
    x = words - ((words >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (x * 0x0101010101010101) >> 56


def lookup(ids: Tensor, table: TableBuffers) -> Tensor:
    """Rows ``(..., d)`` of ids ``(...)`` in range; see :func:`mgqe.ops.lookup`."""
    matrix = table.matrix_values()
    rows = torch.empty((*ids.shape, table.embedding_dim), dtype=torch.float32, device=ids.device)
    flat, out = ids.reshape(-1), rows.reshape(-1, table.embedding_dim)
    for start in range(0, flat.shape[0], _IDS_AT_ONCE):
        some, to = flat[start : start + _IDS_AT_ONCE], out[start : start + _IDS_AT_ONCE]
        if matrix is None or table.mean is None:
            _decode(some, table, to)
        elif table.column_scales is None:
            to.copy_(transform(coordinates(some, table), table.mean, matrix))
        else:
            to.copy_(transform_whole(coordinates(some, table), table.mean, matrix, table.column_scales))
        if table.padding_idx >= 0:
            to[some == table.padding_idx] = 0.0
    return rows


def coordinates(ids: Tensor, table: TableBuffers) -> Tensor:
    """What the codes of ids ``(n,)`` decode to, ``(n, L)``, before a matrix; zeros for ``padding_idx``."""
    decoded = torch.empty((ids.shape[0], table.num_coordinates), dtype=torch.float32, device=ids.device)
    _decode(ids, table, decoded)
    if table.padding_idx >= 0:
        decoded[ids == table.padding_idx] = 0.0
    return decoded


def _decode(ids: Tensor, table: TableBuffers, out: Tensor) -> None:
    tier, rank = tiers_and_ranks(ids, table)
    for g in range(len(table.sizes)):
        mine = (tier == g).nonzero().squeeze(1)
        if mine.numel() == 0:
            continue
        book = table.values(table.codebook_of[g])
        packed = table.codes[g][rank[mine]]
        if table.is_mixed:
            out[mine] = gather_mixed(codes_of(packed, len(table.widths), table.bits_of(g)), book, table.pieces(g))
        else:
            codes = codes_of(packed, table.num_subspaces[g], table.bits[g]).clamp_(max=book.shape[1] - 1)
            out[mine] = gather(codes, book)


def max_code(packed: Tensor, num_subspaces: int, bits: int) -> int:
    """The largest code in packed rows, -1 if there are none."""
    largest = -1
    for start in range(0, packed.shape[0], _IDS_AT_ONCE):
        largest = max(largest, int(codes_of(packed[start : start + _IDS_AT_ONCE], num_subspaces, bits).max()))
    return largest
