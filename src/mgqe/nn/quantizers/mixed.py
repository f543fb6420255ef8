"""VQ in the coordinates and with the bits of a plan, which is made when the warm-up ends.

The rows x of a layer have coordinates z = (x - mean) @ encoder. Each subspace of z has centroids of its own, and the
vector is mean + z_hat @ matrix. Errors of z cost alike in all directions (mgqe.codec.axes), so that the losses of VQ,
taken in z, are those of the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.codec.capacity import BY_COLUMNS, Capacity, TierShape
from mgqe.codec.equations import Groups, codebook_loss, commitment_loss, straight_through
from mgqe.codec.fit import fit_codebooks
from mgqe.codec.kmeans import KMEANS, KMeans
from mgqe.codec.metric import SOURCES
from mgqe.codec.mixed import flat_index, gather_mixed, nearest_mixed_codes, round_flat, round_to_steps, whole_steps
from mgqe.codec.planning.mixed import FittedPlan
from mgqe.codec.planning.shapes import centroid_room
from mgqe.codec.transform import Transform
from mgqe.nn.quantizers.autograd import GatherFlat
from mgqe.nn.quantizers.base import Quantizer
from mgqe.nn.quantizers.mixed_autograd import QuantizeCoordinates
from mgqe.nn.quantizers.prepared_plan import PreparedPlan

MAX_TIERS = 8  # of a plan
ROW_NUMBERS = 256  # of the codebooks' parameter


def planned_shape(embedding_dim: int) -> tuple[int, int, int]:
    """(R, 256, 1): of the parameter that holds the centroids of any plan."""
    return centroid_room(embedding_dim) // ROW_NUMBERS, ROW_NUMBERS, 1


class MixedQuantizer(Quantizer):
    """VQ in the coordinates of a plan.

    All tensors have their shapes before there is a plan, so that optimisers and checkpoints take them: room for the
    centroids of any plan, and d coordinates. What a plan does not use stays zero.

    Attributes:
        codebooks: one parameter (R, 256, 1): the flat codebooks, one after another, in units of ``units``, so that one
            learning rate suits all coordinates. In rows, of which sparse gradients have few.
        commitment: beta.
        mean, matrix, matrix_scales, encoder, units, steps, layout: buffers; the plan. The scales are those of the
            matrix's rows or, where ``steps`` are not zero, of its columns; steps are FittedPlan's. The layout's last
            number, which no plan has a code for, says what errors were measured by.
        metric_source: what that was, one of SOURCES; None without a plan, or in plans of earlier versions.
    """

    follows_rows = True
    mean: Tensor
    matrix: Tensor
    matrix_scales: Tensor
    encoder: Tensor
    units: Tensor
    steps: Tensor
    layout: Tensor
    metric_source: str | None = None

    def __init__(
        self, capacity: Capacity, like: Tensor, centroid_dtype: str, commitment: float, sparse: bool = False
    ) -> None:
        super().__init__(capacity, centroid_dtype, sparse)
        d, device = capacity.embedding_dim, like.device
        self.commitment = commitment
        self._prepared: PreparedPlan | None = None
        self.codebooks = nn.ParameterList([nn.Parameter(like.new_zeros(planned_shape(d)))])
        self.register_buffer("mean", torch.zeros(d, device=device))
        self.register_buffer("matrix", torch.zeros(d, d, dtype=torch.int8, device=device))
        self.register_buffer("matrix_scales", torch.ones(d, device=device))
        self.register_buffer("encoder", torch.zeros(d, d, device=device))
        self.register_buffer("units", torch.ones(d, device=device))
        self.register_buffer("steps", torch.zeros(d, device=device))
        self.register_buffer("layout", torch.zeros(2 + (1 + MAX_TIERS) * d, dtype=torch.int32, device=device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MixedQuantizer:
        """As nn.Module; but a cast leaves the plan in float32, as the frozen table has it."""
        exact = {name: getattr(self, name) for name in ("mean", "matrix_scales", "encoder", "units", "steps")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in exact.items():
            if getattr(self, name).dtype != tensor.dtype:
                setattr(self, name, tensor.to(getattr(self, name).device))
        return self

    # ---- the plan ------------------------------------------------------------------------------------------

    @property
    def is_planned(self) -> bool:
        """Whether there is a plan, with its centroids."""
        return bool(self.capacity.widths)

    @torch.no_grad()
    def adopt(self, fitted: FittedPlan) -> None:
        """Take over a plan with its centroids."""
        plan, device = fitted.plan, self.mean.device
        size = sum(book.numel() for book in fitted.codebooks)
        if size > self.codebooks[0].numel():
            raise ValueError(f"the plan has {size} numbers of centroids, room is for {self.codebooks[0].numel()}")
        coordinates = plan.capacity.num_coordinates
        self.reset_parameters()
        self.mean.copy_(fitted.transform.mean)
        self.matrix[:coordinates] = fitted.transform.matrix.to(device)
        if fitted.steps is None:
            assert fitted.transform.scales is not None
            self.matrix_scales[:coordinates] = fitted.transform.scales.to(device)
        else:
            assert fitted.transform.column_scales is not None
            self.matrix_scales.copy_(fitted.transform.column_scales)
            self.steps[:coordinates] = fitted.steps.to(device)
        self.encoder[:, :coordinates] = torch.as_tensor(plan.axes.encoder[:, :coordinates]).to(device)
        self.units[:coordinates] = fitted.units.to(device)
        d, m, subspaces = plan.capacity.embedding_dim, plan.capacity.num_tiers, len(plan.capacity.widths)
        self.layout[:2] = torch.tensor([subspaces, m if not plan.capacity.share_codebook else -m])
        self.layout[2 : 2 + subspaces] = torch.tensor(plan.capacity.widths)
        for g, tier in enumerate(plan.capacity.tiers):
            start = 2 + (1 + g) * d
            self.layout[start : start + subspaces] = torch.tensor(tier.code_bits)
        self.metric_source = plan.choice.metric.source
        if m < MAX_TIERS:
            self.layout[-1] = 1 + SOURCES.index(self.metric_source)
        self.capacity = plan.capacity
        self._keep_codebooks(fitted.codebooks)

    def read_layout(self, sizes: Sequence[int], before: Capacity) -> Capacity:
        """The capacity that the buffers tell of, for tiers of these sizes; ``before`` where they tell of no plan."""
        self.capacity, d, self.metric_source = before, before.embedding_dim, None
        subspaces, m = self.layout[:2].tolist()
        if subspaces:
            source = 0 if abs(m) == MAX_TIERS else int(self.layout[-1])
            self.metric_source = (None, *SOURCES)[source]
            widths = tuple(self.layout[2 : 2 + subspaces].tolist())
            bits = [tuple(self.layout[2 + (1 + g) * d :][:subspaces].tolist()) for g in range(abs(m))]
            books = [0 if m < 0 else g for g in range(abs(m))]
            tiers = tuple(map(TierShape.mixed, sizes, bits, books))
            matrix_dtype = BY_COLUMNS if bool(self.steps.any()) else "int8"
            self.capacity = Capacity(d, tiers, m < 0, False, widths, matrix_dtype)
        return self.capacity

    @property
    def transform(self) -> Transform:
        """The mean and the matrix."""
        coordinates = self.capacity.num_coordinates
        matrix = self.matrix[:coordinates].contiguous()
        if self.is_whole:
            return Transform(self.mean, matrix, None, self.matrix_scales)
        return Transform(self.mean, matrix, self.matrix_scales[:coordinates].contiguous())

    @property
    def is_whole(self) -> bool:
        """Whether stored centroids are whole multiples of steps."""
        return self.capacity.matrix_dtype == BY_COLUMNS

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for tensor in (self.codebooks[0], self.mean, self.matrix, self.encoder, self.steps, self.layout):
            tensor.zero_()
        for tensor in (self.matrix_scales, self.units):
            tensor.fill_(1)

    @torch.no_grad()
    def start(self, rows: Sequence[Tensor], generator: torch.Generator, effort: KMeans = KMEANS) -> None:
        """New centroids for these rows, by the plan that there is."""
        coordinates = [self.coordinates(each.float()) for each in rows]
        weights = [each.new_ones(len(each)) for each in coordinates]
        self._keep_codebooks(fit_codebooks(coordinates, weights, self.capacity, generator, self.centroid_dtype))

    def _keep_codebooks(self, books: Sequence[Tensor]) -> None:
        for number, book in enumerate(books):
            self._numbers[self._span(number)] = book.to(self.units.device) / self._units_of(number)

    @property
    def _numbers(self) -> Tensor:
        """The codebooks' numbers, one after another."""
        numbers: Tensor = self.codebooks[0].view(-1)
        return numbers

    def _span(self, number: int) -> slice:
        """Where a codebook is in the parameter."""
        lengths = [length for (length,) in self.capacity.codebook_shapes]
        return slice(sum(lengths[:number]), sum(lengths[: number + 1]))

    def _units_of(self, number: int) -> Tensor:
        return self._of_numbers(self.units, number)

    def _of_numbers(self, of_coordinates: Tensor, number: int) -> Tensor:
        """What belongs to each number of a codebook, of what belongs to coordinates."""
        return of_coordinates[flat_index(self.capacity.pieces_of_codebook(number), of_coordinates.device).coordinate]

    # ---- codes and vectors -----------------------------------------------------------------------------------

    def coordinates(self, rows: Tensor) -> Tensor:
        """z of float32 rows (n, d): (n, L), the same whatever the batch."""
        encoder = self.encoder[:, : self.capacity.num_coordinates].contiguous()
        return ops.transform((rows - self.mean).contiguous(), encoder.new_zeros(encoder.shape[1]), encoder)

    def values(self, number: int) -> Tensor:
        """Codebook ``number`` as it will be served, flat float32, differentiable."""
        flat = self._leaf(self.codebooks[0]).view(-1)[self._span(number)].float() * self._units_of(number)
        pieces = self.capacity.pieces_of_codebook(number)
        if self.is_whole:
            return round_to_steps(flat.detach() if self.capacity.has_levels else flat, self.steps, pieces)
        return round_flat(flat, pieces, self.centroid_dtype)

    @torch.no_grad()
    def frozen_codebooks(self) -> list[Tensor]:
        numbers = range(len(self.capacity.codebook_shapes))
        if self.is_whole:
            return [whole_steps(self.values(n), self._of_numbers(self.steps, n)) for n in numbers]
        return [self._numbers[self._span(number)].float() * self._units_of(number) for number in numbers]

    @torch.no_grad()
    def codes(self, rows: Tensor, tier: int) -> Tensor:
        number = self.capacity.codebook_of[tier]
        return nearest_mixed_codes(self.coordinates(rows.float()), self.values(number), self.capacity.pieces(tier))

    @torch.no_grad()
    def rows_of(self, codes: Tensor, tier: int) -> Tensor:
        z_hat = gather_mixed(codes, self.values(self.capacity.codebook_of[tier]), self.capacity.pieces(tier))
        return self.transform.decode(self._as_stored(z_hat))

    def forward(self, rows: Tensor, groups: Groups, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        books = [self.values(number) for number in range(len(self.capacity.codebook_shapes))]
        exact = rows.float()
        z_hat = self._decoded(self.coordinates(exact.detach()), groups, books)
        decoded = self.transform.decode(self._as_stored(z_hat.detach())).to(rows.dtype)
        if not torch.is_grad_enabled():
            return decoded, None
        vectors = straight_through(rows, decoded)
        if not self.training:
            return vectors, None
        coordinates = self.capacity.num_coordinates
        z = (exact - self.mean) @ self.encoder[:, :coordinates]
        share = coordinates / self.capacity.embedding_dim  # the losses are means over the numbers of a row
        loss = share * (codebook_loss(z, z_hat, counts) + self.commitment * commitment_loss(z, z_hat, counts))
        return vectors, loss

    def quantize(
        self, rows: Tensor, groups: Groups, counts: Tensor | None, gathered: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        fuses = self.training and torch.is_grad_enabled() and gathered and self.is_fused
        if fuses and self.takes_kernels_in_graph:
            return self._quantize_in_graph(rows, groups, counts)
        if isinstance(groups, Tensor) and (torch.compiler.is_compiling() or not ops.quantizes_by_tier(rows.device)):
            fuses = False
        if not fuses:
            return super().quantize(rows, groups, counts)
        plan = self._prepared_plan()
        vectors, loss = QuantizeCoordinates.apply(  # type: ignore[no-untyped-call]
            rows,
            counts,
            groups,
            plan.coder,
            plan.values(self.codebooks[0].detach(), self.centroid_dtype),
            self.commitment,
            self.sparse,
            None if self.capacity.has_levels else self.codebooks[0],
        )
        return vectors, loss

    def prepare_for_one_graph(self, device: torch.device) -> None:
        super().prepare_for_one_graph(device)
        self._prepared_plan()

    def _quantize_in_graph(self, rows: Tensor, groups: Groups, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        """As :class:`QuantizeCoordinates`, for a compiler to trace."""
        plan, exact = self._prepared, rows.float()
        assert plan is not None  # prepare_for_one_graph has made it
        coder, tiers = plan.coder, self._tiers_in_graph(groups)
        book = plan.values(self.codebooks[0], self.centroid_dtype)
        z = ops.transform_in_graph(exact, coder.mean, None, coder.encoder, None)
        taken, loss = ops.quantize_in_graph(
            z,
            counts,
            tiers,
            book.detach() if self.capacity.has_levels else book,
            plan.searches,
            rows.shape[1],
            self.commitment,
            coder.units if self.is_whole else None,  # which plan.values has in it otherwise
            coder.steps,
        )
        decoded = ops.transform_in_graph(taken, None, coder.mean, coder.matrix, coder.column_scales)
        return straight_through(rows, decoded.to(rows.dtype)), loss

    @property
    def is_fused(self) -> bool:
        # Not where a subclass has another ``forward``.
        return type(self).forward is MixedQuantizer.forward

    def _prepared_plan(self) -> PreparedPlan:
        """What the steps of training have in common; made anew when a buffer has changed."""
        buffers = (self.mean, self.matrix, self.matrix_scales, self.encoder, self.units, self.steps)
        if self._prepared is None or not self._prepared.is_of(self.capacity, buffers):
            self._prepared = PreparedPlan.of(self.capacity, buffers)
        return self._prepared

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, whose buffers are others."""
        return {**self.__dict__, "_prepared": None}

    def _as_stored(self, z_hat: Tensor) -> Tensor:
        """Coordinates as the matrix takes them."""
        return whole_steps(z_hat, self.steps[: self.capacity.num_coordinates]) if self.is_whole else z_hat

    def _decoded(self, z: Tensor, groups: Groups, books: Sequence[Tensor]) -> Tensor:
        """The centroids nearest to z (u, L), differentiable in the codebooks."""
        tiers = range(self.capacity.num_tiers)
        if isinstance(groups, Tensor):  # how many rows a tier has is no static shape: every tier decodes every row
            decoded = self._of_tier(z, 0, books)
            for g in tiers[1:]:
                decoded = torch.where((groups == g).unsqueeze(-1), self._of_tier(z, g, books), decoded)
            return decoded
        parts = [self._of_tier(part, g, books) for g, part in zip(tiers, torch.split(z, list(groups)), strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _of_tier(self, z: Tensor, tier: int, books: Sequence[Tensor]) -> Tensor:
        pieces, book = self.capacity.pieces(tier), books[self.capacity.codebook_of[tier]]
        with torch.no_grad():
            places = flat_index(pieces, z.device).places(nearest_mixed_codes(z, book.detach(), pieces))
        if torch.compiler.is_compiling():
            return book[places]
        return GatherFlat.apply(book, places)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def revive(self, rows: Sequence[Tensor], generator: torch.Generator) -> int:
        """Move centroids that no row of a tier that reaches them chooses onto coordinates of such rows.

        Returns:
            how many centroids moved.
        """
        moved = 0
        if self.capacity.has_levels:  # shared by coordinates, and fitted to all of them
            return moved
        z = [self.coordinates(each.float()) for each in rows]
        for number in range(len(self.capacity.codebook_shapes)):
            book, start = self.values(number), self._span(number).start
            readers = [g for g, c in enumerate(self.capacity.codebook_of) if c == number and len(z[g])]
            codes = {g: nearest_mixed_codes(z[g], book, self.capacity.pieces(g)).long() for g in readers}
            for j, piece in enumerate(self.capacity.pieces_of_codebook(number)):
                uses = book.new_zeros(piece.num_centroids)
                for g in readers:
                    uses += torch.bincount(codes[g][:, j], minlength=piece.num_centroids)
                for dead in (uses == 0).nonzero().flatten().tolist():
                    able = [g for g in readers if dead < 1 << self.capacity.tiers[g].code_bits[j]]
                    if not able:
                        continue
                    near = z[able[int(torch.randint(len(able), (1,), generator=generator, device="cpu"))]]
                    row = near[int(torch.randint(len(near), (1,), generator=generator, device="cpu"))]
                    columns = slice(piece.coordinate, piece.coordinate + piece.width)
                    at = start + piece.entry + dead * piece.width
                    self._numbers[at : at + piece.width] = row[columns] / self.units[columns]
                    moved += 1
        return moved
