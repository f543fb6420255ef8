"""The tensors of a frozen table: made from unpacked codes and float codebooks, and checked where a file has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mgqe.checks.names import errors_about
from mgqe.checks.scalars import as_ints, optional_int
from mgqe.codec.capacity import TierShape, tier_shapes
from mgqe.codec.equations import in_int8_steps, int8_scales
from mgqe.codec.layout import (
    CENTROIDS,
    CODES,
    COLUMN_SCALES,
    MAP_BITS,
    MAP_RANKS,
    MATRIX,
    MATRIX_SCALES,
    MEAN,
    SCALES,
    TableLayout,
)
from mgqe.codec.mixed import spread, subspace_scales
from mgqe.codec.packing import pack, signed, spare_bits_are_zero
from mgqe.codec.tier_map import TierMap, block_counts, build_tier_map, map_order, ranks_of, unpack_bits
from mgqe.codec.tiers import Tiers
from mgqe.codec.transform import Transform
from mgqe.ops import max_code
from mgqe.ops.layout.packed_format import level_lengths
from mgqe.ops.layout.pieces import Piece, check_bits


def lay_out(
    tiers: Tiers,
    codes: Sequence[Tensor],
    codebooks: Sequence[Tensor],
    codebook_of: Sequence[int],
    num_centroids: Sequence[int],
    padding_idx: int | None,
    centroid_dtype: str,
) -> tuple[dict[str, Tensor], TableLayout]:
    """A table's tensors and layout from unpacked codes; see :meth:`CompactTable.from_codes`."""
    codebook_of, num_centroids = as_ints("codebook_of", codebook_of), as_ints("num_centroids", num_centroids)
    _check_one_per_tier(tiers, codes=codes, codebook_of=codebook_of, num_centroids=num_centroids)
    for g, tier_codes in enumerate(codes):
        if tier_codes.ndim != 2 or tier_codes.shape[0] != tiers.sizes[g] or tier_codes.shape[1] < 1:
            raise ValueError(
                f"codes of tier {g} must have shape ({tiers.sizes[g]}, num_subspaces), got {tuple(tier_codes.shape)}"
            )
    if not codebooks or any(book.ndim != 3 for book in codebooks):
        raise ValueError("codebooks must be tensors of shape (subspaces or 1, centroids, dimensions)")
    if not all(0 <= c < len(codebooks) for c in codebook_of):
        raise ValueError(f"codebook_of must name codebooks 0 .. {len(codebooks) - 1}, got {codebook_of}")
    num_subspaces = [tier_codes.shape[1] for tier_codes in codes]
    first = codebooks[codebook_of[0]]
    d = int(first.shape[2] * (num_subspaces[0] if first.shape[0] == 1 else first.shape[0]))
    shapes = tier_shapes(tiers.sizes, num_subspaces, num_centroids, codebook_of)
    layout = TableLayout(d, shapes, centroid_dtype, optional_int("padding_idx", padding_idx), map_order(tiers))
    packed = {CODES.format(g): _packed(g, shape, codes[g].detach().cpu()) for g, shape in enumerate(shapes)}
    return packed | lay_out_frame(layout, tiers, codebooks), layout


def lay_out_mixed(
    tiers: Tiers,
    codes: Sequence[Tensor],
    codebooks: Sequence[Tensor],
    codebook_of: Sequence[int],
    widths: Sequence[int],
    code_bits: Sequence[Sequence[int]],
    padding_idx: int | None,
    centroid_dtype: str,
    transform: Transform | None,
) -> tuple[dict[str, Tensor], TableLayout]:
    """A mixed table's tensors and layout from unpacked codes; see :meth:`CompactTable.from_mixed_codes`."""
    codebook_of, widths = as_ints("codebook_of", codebook_of), as_ints("widths", widths)
    bits = [as_ints(f"code_bits[{g}]", of_tier) for g, of_tier in enumerate(code_bits)]
    _check_one_per_tier(tiers, codes=codes, codebook_of=codebook_of, code_bits=bits)
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be the coordinates of each subspace, at least 1 each, got {widths}")
    for g, (tier_codes, of_tier) in enumerate(zip(codes, bits, strict=True)):
        if len(of_tier) != len(widths):
            raise ValueError(f"code_bits of tier {g} must have one entry per subspace, {len(widths)}, got {of_tier}")
        if tuple(tier_codes.shape) != (expected := (tiers.sizes[g], len(widths))):
            raise ValueError(f"codes of tier {g} must have shape {expected}, got {tuple(tier_codes.shape)}")
        check_bits(of_tier)
    if not codebooks or set(codebook_of) != set(range(len(codebooks))):
        raise ValueError(f"codebook_of must name all codebooks, 0 .. {len(codebooks) - 1}, got {codebook_of}")
    shapes = tuple(map(TierShape.mixed, tiers.sizes, bits, codebook_of))
    d = sum(widths) if transform is None else transform.embedding_dim
    if transform is not None and sum(widths) != transform.num_coordinates:
        raise ValueError(
            f"widths must sum to the rows of the matrix, {transform.num_coordinates}, got {widths}, which sum to "
            f"{sum(widths)}"
        )
    matrix_dtype = None if transform is None else transform.dtype
    padding = optional_int("padding_idx", padding_idx)
    layout = TableLayout(d, shapes, centroid_dtype, padding, map_order(tiers), widths, matrix_dtype)
    for c, (book, shape) in enumerate(zip(codebooks, layout.flat_shapes, strict=True)):
        if tuple(book.shape) != shape:
            raise ValueError(
                f"codebook {c} must be flat, {shape}: 2^bits centroids of each subspace, one subspace after another, "
                f"bits being the most of a tier that reads it; got {tuple(book.shape)}"
            )
    packed = {CODES.format(g): _packed(g, shape, codes[g].detach().cpu()) for g, shape in enumerate(shapes)}
    return packed | lay_out_frame(layout, tiers, codebooks, transform), layout


def _check_one_per_tier(tiers: Tiers, **lists: Sequence[object]) -> None:
    for name, entries in lists.items():
        if len(entries) != tiers.num_tiers:
            raise ValueError(f"{name} must have one entry per tier, {tiers.num_tiers}, got {len(entries)}")


def _packed(tier: int, shape: TierShape, codes: Tensor) -> Tensor:
    if shape.code_bits:
        with errors_about(f"codes of tier {tier}"):
            return pack(codes, shape.packing)
    if codes.numel() and (largest := int(signed(codes).max())) >= shape.num_centroids:
        raise ValueError(f"tier {tier} has num_centroids={shape.num_centroids}, but a code {largest}")
    return pack(codes, shape.bits)


def lay_out_frame(
    layout: TableLayout, tiers: Tiers, codebooks: Sequence[Tensor], transform: Transform | None = None
) -> dict[str, Tensor]:
    """The tensors of a table apart from the codes: centroids (of float ``codebooks``), scales, transform, tier map."""
    for number, book in enumerate(codebooks):
        if not bool(torch.isfinite(book).all()):
            raise ValueError(
                f"codebook {number} holds NaN or infinity: if it was trained, lower the learning rate or go back to an "
                "earlier checkpoint"
            )
    tensors: dict[str, Tensor] = {}
    for c, book in enumerate(codebooks):
        if layout.whole:
            tensors[CENTROIDS.format(c)] = _whole_centroids(c, book)
            continue
        pieces = layout.pieces_of_codebook(c) if layout.widths else ()
        tensors[CENTROIDS.format(c)], scales = store_centroids(book, layout.centroid_dtype, pieces)
        if layout.centroid_dtype == "int8":
            tensors[SCALES.format(c)] = scales
    if transform is not None:
        tensors |= transform_tensors(transform)
    return tensors | map_tensors(None if layout.order is None else build_tier_map(tiers))


def transform_tensors(transform: Transform) -> dict[str, Tensor]:
    """The named tensors of a mean and a matrix."""
    named = {
        MEAN: transform.mean,
        MATRIX: transform.matrix,
        MATRIX_SCALES: transform.scales,
        COLUMN_SCALES: transform.column_scales,
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _whole_centroids(number: int, codebook: Tensor) -> Tensor:
    """Centroids that are whole numbers from -127 to 127, as int8; ValueError for others."""
    values = codebook.detach().cpu()
    if bool((values != values.round()).any()) or bool((values.abs() > 127).any()):
        raise ValueError(
            f"codebook {number} must hold whole numbers from -127 to 127, since the matrix has column scales: round "
            "centroids, and scale the rows of the matrix up instead"
        )
    return values.to(torch.int8)


def store_centroids(codebook: Tensor, centroid_dtype: str, pieces: tuple[Piece, ...] = ()) -> tuple[Tensor, Tensor]:
    """A float codebook (Dc, Kc, sc) as it is stored, and its scales (Dc,) or an empty tensor.

    ``pieces``: of a flat codebook of a mixed table, where its subspaces lie.
    """
    values = codebook.detach().cpu().to(torch.float32).clone(memory_format=torch.contiguous_format)
    none = torch.empty(0, dtype=torch.float32, device="cpu")
    if centroid_dtype == "float32":
        return values, none
    if centroid_dtype == "float16":
        halves = values.to(torch.float16)
        if not bool(torch.isfinite(halves).all()):
            raise ValueError('centroids beyond 65504 do not fit float16: use centroid_dtype="int8" or "float32"')
        return halves, none
    scales = subspace_scales(values, pieces) if pieces else int8_scales(values)
    steps = in_int8_steps(values, spread(scales, pieces) if pieces else scales)
    return steps.to(torch.int8), scales.reshape(-1)


def map_tensors(tier_map: TierMap | None) -> dict[str, Tensor]:
    """The named tensors of a tier map; none without one."""
    if tier_map is None:
        return {}
    tensors = {MAP_BITS.format(level): bits for level, bits in enumerate(tier_map.bits)}
    return tensors | {MAP_RANKS.format(level): ranks for level, ranks in enumerate(tier_map.ranks)}


def read_map(tensors: Mapping[str, Tensor], order: tuple[int, ...]) -> TierMap:
    """The inverse of :func:`map_tensors`."""
    levels = range(len(order) - 1)
    bits, ranks = map(MAP_BITS.format, levels), map(MAP_RANKS.format, levels)
    return TierMap(order, tuple(tensors[name] for name in bits), tuple(tensors[name] for name in ranks))


# ---- checks of tensors that are there ----------------------------------------------------------------------


def check_codebook(tier: int, embedding_dim: int, tier_shape: TierShape, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a codebook of ``shape`` (Dc, Kc, sc) can serve the tier."""
    pieces, centroids, width = shape
    subspaces = tier_shape.num_subspaces
    separate = pieces * width == embedding_dim and pieces % subspaces == 0
    shared = pieces == 1 and subspaces * width == embedding_dim
    if not (separate or shared):
        raise ValueError(
            f"tier {tier} has {subspaces} subspaces of embedding_dim={embedding_dim}, which a codebook of shape "
            f"(subspaces, centroids, dimensions) = {shape} cannot serve"
        )
    if tier_shape.num_centroids > centroids:
        raise ValueError(
            f"tier {tier} has num_centroids={tier_shape.num_centroids}, but its codebook holds {centroids}"
        )


def check_codes(name: str, packed: Tensor, tier: TierShape) -> None:
    """Raise ValueError unless packed rows (n, row_bytes) hold codes below K_g and spare bits that are zero.

    The rows are read only where they could hold anything else.
    """
    if not spare_bits_are_zero(packed, tier.num_subspaces, tier.packing):
        raise ValueError(f"tensor {name!r} has spare bits that are not zero")
    if not tier.code_bits and tier.num_centroids < 1 << tier.bits:
        largest = max_code(packed, tier.num_subspaces, tier.bits)
        if largest >= tier.num_centroids:
            raise ValueError(f"tensor {name!r} holds code {largest}, but num_centroids is {tier.num_centroids}")


def check_map(tier_map: TierMap, sizes: Sequence[int]) -> None:
    """Raise ValueError unless the map sends each id to one tier and exactly sizes[g] ids to tier g.

    A look-up trusts ranks: a wrong one would read past a tier's codes.
    """
    for level, n in enumerate(level_lengths(sizes, tier_map.order)):
        words, tier = tier_map.bits[level].cpu(), tier_map.order[level]
        blocks = block_counts(words)
        ones = int(blocks.sum())
        if ones != sizes[tier]:
            raise ValueError(f"tensor {MAP_BITS.format(level)!r} marks {ones} ids, but tier {tier} has {sizes[tier]}")
        last = n // 64
        if bool(unpack_bits(words[last:], (words.numel() - last) * 64)[n - 64 * last :].any()):
            raise ValueError(f"tensor {MAP_BITS.format(level)!r} marks ids beyond the {n} that are left")
        if not torch.equal(ranks_of(blocks), tier_map.ranks[level].cpu()):
            raise ValueError(f"tensor {MAP_RANKS.format(level)!r} disagrees with the bits it counts")
