"""Compact tables, and bags of them, in a form that any exporter can trace."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.checks.ids import as_int64, check_ids
from mgqe.codec.packing import bits_for
from mgqe.convert.export.decode import (
    BLOCK_BYTES,
    decode_coordinates,
    decode_rows,
    rank_in_map,
    transform,
    unpack_codes,
)
from mgqe.nn.bag import MODES
from mgqe.table.compact import CompactTable

if TYPE_CHECKING:
    from typing_extensions import Self

OUTSIDE = 1 << 62  # replaces an id outside the table, so that no gather reads a wrong row


class PortableEmbedding(nn.Module):
    """:class:`mgqe.CompactEmbedding` by standard operators: the same bits, several times slower in eager mode.

    Where rows are mean + coordinates @ matrix, the runtime chooses the order in which products are added, so that rows
    agree to float32 rounding; with column scales the sums are exact, and the bits the same.

    The buffers are the table's tensors as they are (packed codes, stored centroids, tier map), so that an exported
    program is as small as the table's file. They share the table's memory, unless ids were appended to the table.

    Args:
        table: a compact table with at least one row. Ids that are appended later are not known here.
        dtype: of the vectors.

    Raises:
        TypeError: something else than a CompactTable. ValueError: a table without rows.

    Shape:
        input of any shape (...) and integer dtype -> (..., d).

    An id outside the table looks up as the table's fallback, if there is one. Without a fallback it is an IndexError in
    eager mode, and an index out of range in exported programs, which ONNX Runtime and compiled code refuse on CPUs.
    """

    def __init__(self, table: CompactTable, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if not isinstance(table, CompactTable):
            raise TypeError(f"expected a CompactTable, got {type(table).__name__}, which has no codes to export")
        if table.num_embeddings == 0:
            raise ValueError("the table has no rows: there is nothing to export")
        tensors, _ = table.to_tensors()
        self.config = table.config
        self.dtype = dtype
        self.has_fallback = "fallback" in tensors
        self.rows_as_one: Callable[[Tensor], Tensor] | None = None  # what stands for _rows while ONNX is written
        for name, tensor in tensors.items():
            if name.startswith("tier_map.bits"):
                tensor = tensor.contiguous().view(torch.uint8).reshape(-1, BLOCK_BYTES)
            self.register_buffer(name.replace(".", "_"), tensor)
        self.training = False

    @property
    def num_embeddings(self) -> int:
        """N."""
        return self.config.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """d."""
        return self.config.embedding_dim

    @property
    def padding_idx(self) -> int | None:
        """The id that looks up as zeros, or None."""
        return self.config.padding_idx

    @property
    def weight(self) -> Tensor:
        """All vectors, (N, d), decoded each time it is read: modules tied to the embedding read it."""
        ids = torch.arange(self.num_embeddings, device=self.get_buffer("centroids_0").device)
        return self._rows(ids).to(self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Vectors of ids: integers (...) -> (..., d)."""
        return self._lookup(input).to(self.dtype)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return f"{self.num_embeddings}, {self.embedding_dim}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the table to a device. A cast changes only the dtype of the vectors."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.get_buffer("centroids_0").device))
        self.dtype = probe.dtype
        module: Self = super()._apply(lambda tensor: tensor.to(probe.device), recurse)  # type: ignore[no-untyped-call]
        return module

    # ---- decoding ----------------------------------------------------------------------------------------

    def _lookup(self, ids: Tensor) -> Tensor:
        """Float32 (..., d)."""
        ids = as_int64(ids)
        flat = ids.reshape(-1)
        known = (flat >= 0) & (flat < self.num_embeddings)
        if self.has_fallback:
            rows = self._rows(torch.where(known, flat, 0))
            rows = torch.where(known[:, None], rows, self.get_buffer("fallback"))
        else:
            check_ids(flat, self.num_embeddings)  # does nothing while traced
            rows = self._rows(torch.where(known, flat, OUTSIDE))
        return rows.reshape(*ids.shape, self.embedding_dim)

    def _rows(self, ids: Tensor) -> Tensor:
        """Ids (n,), in range or OUTSIDE -> float32 (n, d)."""
        if self.rows_as_one is not None:
            return self.rows_as_one(ids)
        config = self.config
        tier, rank = self._locate(ids)
        # Tiers with the same codebook and number of subspaces differ only in their codes: they are decoded together.
        tiers_of: dict[tuple[int, int], list[int]] = {}
        for g, size in enumerate(config.sizes):
            if size:
                tiers_of.setdefault((config.codebook_of[g], config.num_subspaces[g]), []).append(g)
        rows: Tensor | None = None
        for (book, _), tiers in tiers_of.items():
            codes: Tensor | None = None
            in_group: Tensor | None = None
            for g in tiers:
                in_tier = None if tier is None else tier == g
                of_tier = self._codes(g, rank if in_tier is None else torch.where(in_tier, rank, 0))
                codes = of_tier if codes is None or in_tier is None else torch.where(in_tier[:, None], of_tier, codes)
                in_group = in_tier if in_group is None or in_tier is None else in_group | in_tier
            assert codes is not None  # a group has a tier
            scales = self.get_buffer(f"scales_{book}") if config.centroid_dtype == "int8" and not config.whole else None
            centroids = self.get_buffer(f"centroids_{book}")
            if config.widths:
                of_group = decode_coordinates(codes, centroids, scales, config.pieces_of_codebook(book))
            else:
                of_group = decode_rows(codes, centroids, scales)
            rows = of_group if rows is None or in_group is None else torch.where(in_group[:, None], of_group, rows)
        assert rows is not None  # a table has a row
        if config.matrix_dtype is not None:
            matrix_scales = self.get_buffer("matrix_scales") if config.matrix_dtype == "int8" else None
            column_scales = self.get_buffer("column_scales") if config.whole else None
            rows = transform(rows, self.get_buffer("mean"), self.get_buffer("matrix"), matrix_scales, column_scales)
        if config.padding_idx is not None:
            rows = torch.where((ids == config.padding_idx)[:, None], 0.0, rows)
        return rows

    def _codes(self, tier: int, rank: Tensor) -> Tensor:
        """Codes of the rows of one tier: int64 (n,) -> int64 (n, D)."""
        config = self.config
        packed = torch.index_select(self.get_buffer(f"codes_{tier}"), 0, rank)
        codes = unpack_codes(packed, config.num_subspaces[tier], config.tiers[tier].packing)
        if config.widths:  # every code of a mixed table names a centroid
            return codes
        size = self.get_buffer(f"centroids_{config.codebook_of[tier]}").shape[1]
        # Only a damaged file has larger codes. The kernels read them in the same way.
        return codes.clamp(max=size - 1) if 1 << bits_for(config.num_centroids[tier]) > size else codes

    def _locate(self, ids: Tensor) -> tuple[Tensor | None, Tensor]:
        """The tier, or None where there is only one, and the rank in it: int64 (n,) each."""
        config = self.config
        if sum(size > 0 for size in config.sizes) == 1 and config.order is None:
            return None, ids
        if config.order is None:
            tier, rank = torch.zeros_like(ids), ids
            for g, start in list(enumerate(accumulate(config.sizes)))[:-1]:
                beyond = ids >= start
                tier, rank = torch.where(beyond, g + 1, tier), torch.where(beyond, ids - start, rank)
            return tier, rank
        return self._locate_in_map(ids, config.order)

    def _locate_in_map(self, ids: Tensor, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        tier, rank, position = torch.full_like(ids, order[-1]), ids, ids
        undecided = torch.ones_like(ids, dtype=torch.bool)
        for level, target in enumerate(order[:-1]):
            words = self.get_buffer(f"tier_map_bits_{level}")
            if words.shape[0] == 0:  # the tier of every id is known
                break
            # Position 0 stands in for ids whose tier is known: every level that has ids has it.
            position = torch.where(undecided, position, 0) if level else position
            bit, ones = rank_in_map(position, words, self.get_buffer(f"tier_map_ranks_{level}"))
            chosen = undecided & bit
            tier, rank = torch.where(chosen, target, tier), torch.where(chosen, ones, rank)
            undecided = undecided & ~bit
            position = position - ones
        return tier, torch.where(undecided, position, rank)


class PortableEmbeddingBag(PortableEmbedding):
    """:class:`mgqe.CompactEmbeddingBag` by standard operators. It takes :class:`PortableEmbedding`'s arguments and two.

    The runtime chooses the order in which rows are added, so that sums and means agree with the frozen bag's to float32
    rounding. The values of offsets are checked in eager mode, but not in exported programs.

    Args:
        mode: "sum", "mean" or "max".
        include_last_offset: see :meth:`forward`.
    """

    def __init__(
        self,
        table: CompactTable,
        dtype: torch.dtype = torch.float32,
        mode: str = "mean",
        include_last_offset: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        super().__init__(table, dtype)
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Bags of ids -> (B, d): input (B, L), or (n,) with offsets (B,), or (B + 1,) with ``include_last_offset``.

        Like :meth:`mgqe.CompactTable.bag` it raises ValueError for shapes and offsets that do not fit and for weights
        in another mode than "sum", and TypeError for dtypes. While it is traced, only shapes are checked.
        """
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.float()
        if torch.compiler.is_compiling():
            self._check_shapes(input, offsets, per_sample_weights)
        else:
            ops.check_bags(input, offsets, self.mode, per_sample_weights, self.include_last_offset)
        counted = torch.ones_like(input, dtype=torch.bool) if self.padding_idx is None else input != self.padding_idx
        rows = self._lookup(input)
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.unsqueeze(-1)
        pooled = self._pool_rows(rows, counted) if offsets is None else self._pool_segments(rows, counted, offsets)
        return pooled.to(self.dtype)

    def _pool_rows(self, rows: Tensor, counted: Tensor) -> Tensor:
        """Rows (B, L, d), counted (B, L) -> (B, d)."""
        if self.mode == "max":
            if rows.shape[1] == 0:
                return rows.new_zeros(rows.shape[0], self.embedding_dim)
            maxima = torch.where(counted.unsqueeze(-1), rows, -torch.inf).amax(1)
            return torch.where(counted.any(1, keepdim=True), maxima, 0.0)
        total = torch.where(counted.unsqueeze(-1), rows, 0.0).sum(1)
        return total / counted.float().sum(1, keepdim=True).clamp(min=1) if self.mode == "mean" else total

    def _pool_segments(self, rows: Tensor, counted: Tensor, offsets: Tensor) -> Tensor:
        """Rows (n, d), counted (n,), offsets (B,) or (B + 1,) -> (B, d)."""
        starts = as_int64(offsets)
        starts = starts[:-1] if self.include_last_offset else starts
        n, bags = rows.shape[0], starts.shape[0]
        # The number of bags that have started at each row. Empty bags at the end start at n.
        started = torch.zeros(n + 1, dtype=torch.int64, device=rows.device)
        started = started.scatter_add(0, starts, torch.ones_like(starts))
        bag = started.cumsum(0)[:n] - 1
        bag_of_value = bag[:, None].expand(n, self.embedding_dim)
        count = torch.zeros(bags, dtype=torch.float32, device=rows.device).scatter_add(0, bag, counted.float())[:, None]
        initial = rows.new_full((bags, self.embedding_dim), -torch.inf if self.mode == "max" else 0.0)
        if self.mode == "max":
            maxima = initial.scatter_reduce(0, bag_of_value, torch.where(counted[:, None], rows, -torch.inf), "amax")
            return torch.where(count > 0, maxima, 0.0)
        total = initial.scatter_add(0, bag_of_value, torch.where(counted[:, None], rows, 0.0))
        return total / count.clamp(min=1) if self.mode == "mean" else total

    def _check_shapes(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> None:
        if ids.dim() != (2 if offsets is None else 1):
            extra = " + 1" if self.include_last_offset else ""
            raise ValueError(
                f"expected ids of shape (B, L), or ids (n,) with offsets (B{extra},), got ids {tuple(ids.shape)} "
                f"{'without' if offsets is None else 'with'} offsets"
            )
        if weights is not None and self.mode != "sum":
            raise ValueError(f'per_sample_weights are for mode="sum" only, got mode={self.mode!r}')
