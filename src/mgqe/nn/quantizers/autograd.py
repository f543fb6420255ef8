"""Gradients written out, where torch's own would go over memory several times more, or step by step through Python.

Eager mode only: under torch.compile the layers compose the same formulas (:mod:`mgqe.codec.equations`) for the compiler
to fuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgqe import ops
from mgqe.ops import reference


@dataclass(frozen=True)
class TrainingBatch:
    """The distinct ids of a batch and what a training pass needs to know of them.

    Attributes:
        ids: (u,) distinct.
        counts: (u,) how often each came.
        places: (n,) each id's place among the distinct ones.
        padding: (u,) True for padding_idx; None without one.
        repeat: give the vectors of all n ids; else those of the distinct ones.
        scale_grad_by_freq: divide a row's gradient by its count, as nn.Embedding does.
        sparse: make the gradients of rows and codebooks sparse.
        zero_padding: give zeros for padding; else its vector, which trains nothing either way.
        dtype: of the vectors; None for the weight's.
    """

    ids: Tensor
    counts: Tensor
    places: Tensor
    padding: Tensor | None
    repeat: bool
    scale_grad_by_freq: bool
    sparse: bool
    zero_padding: bool = True
    dtype: torch.dtype | None = None

    def weights(self, dim: int) -> Tensor:
        """(u,) float32: shares of the ids in a mean over ids and dimensions, none for padding."""
        counts = self.counts.to(torch.float32)
        if self.padding is None:
            return counts.div_(max(1, self.places.shape[0]) * dim)
        counts.masked_fill_(self.padding, 0.0)
        return counts.div_(counts.sum().clamp_(min=1).mul_(dim))

    def share_of_gradient(self) -> Tensor:
        """(u,) float32: what a row gets of each of its vectors' gradients: 1, or 1 / count, and 0 for padding."""
        share = torch.ones_like(self.counts, dtype=torch.float32)
        if self.scale_grad_by_freq:
            share.div_(self.counts)
        return share if self.padding is None else share.masked_fill_(self.padding, 0.0)

    def sum_gradient(self, grad: Tensor) -> Tensor:
        """The gradient of the vectors that were given -> that of the distinct rows (u, d), float32 or float64."""
        if not self.repeat:
            total = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True)
        elif grad.device.type == "cpu" and grad.dtype != torch.float64 and self.ids.numel():
            shape = (1, self.ids.shape[0], grad.shape[1])
            total = ops.scatter(grad, self.places.unsqueeze(-1), None, *shape)[0].squeeze(0)
        else:
            kind = torch.promote_types(grad.dtype, torch.float32)
            total = torch.zeros(self.ids.shape[0], grad.shape[1], dtype=kind, device=grad.device)
            total.index_add_(0, self.places, grad.to(kind))
        if self.scale_grad_by_freq:
            total.div_(self.counts.unsqueeze(-1))
        return total if self.padding is None else total.masked_fill_(self.padding.unsqueeze(-1), 0.0)

    def rows_of(self, weight: Tensor) -> Tensor:
        """The rows (u, d) of the distinct ids, differentiable in the weight."""
        return weight.index_select(0, self.ids)

    def row_gradient(self, values: Tensor, num_embeddings: int) -> Tensor:
        """The gradient (u, d) of the distinct rows -> that of the whole weight (N, d)."""
        shape = (num_embeddings, values.shape[1])
        if self.sparse:
            return torch.sparse_coo_tensor(self.ids.unsqueeze(0), values, shape, check_invariants=False)
        return values.new_zeros(shape).index_copy_(0, self.ids, values)


class QuantizeRows(torch.autograd.Function):
    """Rows of a weight to their codes' vectors, straight through, and the loss of codebook and commitment at once.

    Equals reading the rows, ``straight_through`` and ``codebook_loss + beta * commitment_loss`` of
    :mod:`mgqe.codec.equations`; the two losses have one value, sum_i w_i ||q_i - c_i||^2, and differ in where their
    gradients go.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        rows: Tensor,
        batch: TrainingBatch,
        blocks: Sequence[tuple[Tensor, int]],
        books: Sequence[Tensor],
        commitment: float,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Vectors (n, d), or (u, d), in the weight's dtype, and the loss, a float32 scalar.

        Args:
            weight: (N, d), which gets the rows' gradient.
            rows: (u, d) those of the batch's distinct ids.
            batch: see :class:`TrainingBatch`.
            blocks: (codes (n, D_g) int32, number of their codebook), in the order of rows, n summing to u.
            books: (Dc, Kc, sc) float32 each, as they are served.
            commitment: beta.
            parameters: what the books were rounded from; they get the books' gradients.
        """
        sizes = [len(codes) for codes, _ in blocks]
        weights = batch.weights(rows.shape[1])
        parts = [
            ops.decode_error(part, codes, books[number], share)
            for part, share, (codes, number) in zip(
                torch.split(rows.float(), sizes), torch.split(weights, sizes), blocks, strict=True
            )
        ]
        vectors, errors, losses = parts[0] if len(parts) == 1 else (torch.cat(made) for made in zip(*parts))
        if batch.padding is not None and batch.zero_padding:
            vectors.masked_fill_(batch.padding.unsqueeze(-1), 0.0)
        # Not saved_for_backward, which one backward pass frees: the task's loss and this one may have a pass each.
        ctx.errors, ctx.num_embeddings, ctx.dtype = errors, weight.shape[0], weight.dtype
        ctx.batch, ctx.blocks, ctx.commitment = batch, blocks, commitment
        ctx.books, ctx.inputs = books, (weight, *parameters)
        ctx.shapes = [(tuple(book.shape), parameter.dtype) for book, parameter in zip(books, parameters, strict=True)]
        ctx.set_materialize_grads(False)
        vectors = vectors.to(weight.dtype if batch.dtype is None else batch.dtype)
        return vectors.index_select(0, batch.places) if batch.repeat else vectors, losses.sum().mul_(1 + commitment)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        """The vectors' gradient goes to the rows; the loss's to the rows, times beta, and to the centroids chosen."""
        if torch.is_grad_enabled():  # create_graph=True, as a gradient penalty asks for
            return _composed_gradients(ctx, grad, grad_loss)
        errors: Tensor = ctx.errors
        batch: TrainingBatch = ctx.batch
        grad_weight = None
        if ctx.needs_input_grad[0]:
            total = torch.zeros_like(errors) if grad is None else batch.sum_gradient(grad)
            if grad_loss is not None:
                total.addcmul_(errors.to(total.dtype), (grad_loss * (2 * ctx.commitment)).to(total.dtype))
            grad_weight = batch.row_gradient(total.to(ctx.dtype), ctx.num_embeddings)
        sums: list[Tensor | None] = [None for _ in ctx.shapes]
        if grad_loss is not None:
            start = 0
            for codes, number in ctx.blocks:
                stop = start + len(codes)
                if ctx.needs_input_grad[6 + number]:
                    found, _ = ops.scatter(errors[start:stop], codes, None, *ctx.shapes[number][0])
                    earlier = sums[number]
                    sums[number] = found if earlier is None else earlier + found
                start = stop
            for number, (total_of_book, (_, dtype)) in enumerate(zip(sums, ctx.shapes, strict=True)):
                if total_of_book is not None:
                    dense = total_of_book.mul_(grad_loss * -2).to(dtype)
                    sums[number] = sparse_rows(dense) if batch.sparse else dense
        return grad_weight, None, None, None, None, None, *sums


def _composed_gradients(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of :class:`QuantizeRows` with a graph of their own, so that they can be differentiated again.

    Raises:
        RuntimeError: the layer has sparse gradients, which torch differentiates once.
    """
    batch: TrainingBatch = ctx.batch
    if batch.sparse:
        raise RuntimeError(
            "create_graph=True (a gradient penalty, a second derivative) does not go with sparse=True, whose gradients "
            "are differentiated once: make the layer with sparse=False"
        )
    weight, *parameters = ctx.inputs
    rows = batch.rows_of(weight).float()
    books = [book + (p.float() - p.detach().float()) for book, p in zip(ctx.books, parameters, strict=True)]
    decoded = torch.cat([reference.gather(codes, books[number]) for codes, number in ctx.blocks])
    # The vectors' values are not needed, only how they depend on the rows: straight through.
    vectors = batch.share_of_gradient().unsqueeze(-1) * rows
    if batch.repeat:
        vectors = vectors.index_select(0, batch.places)
    weights = batch.weights(rows.shape[1])
    codebook_loss = (weights * (decoded - rows.detach()).square().sum(1)).sum()
    commitment_loss = (weights * (rows - decoded.detach()).square().sum(1)).sum()
    loss = codebook_loss + ctx.commitment * commitment_loss
    outputs = [(out, g) for out, g in ((vectors, grad), (loss, grad_loss)) if g is not None]
    inputs = [tensor for tensor in ctx.inputs if tensor.requires_grad]
    wanted = iter(
        torch.autograd.grad(
            [out for out, _ in outputs],
            inputs,
            [g.to(out.dtype) for out, g in outputs],
            create_graph=True,
            allow_unused=True,
        )
    )
    first, *others = (next(wanted) if tensor.requires_grad else None for tensor in ctx.inputs)
    return first, None, None, None, None, None, *others


class SparseGradient(torch.autograd.Function):
    """Identity whose backward pass makes the gradient sparse, so that SparseAdam takes the whole layer."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """values (rows, ...) -> the same."""
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Dense gradient -> sparse over its first dimension."""
        return sparse_rows(grad)


class ScaleGradient(torch.autograd.Function):
    """Identity whose backward pass multiplies each row's gradient by a number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factors: Tensor) -> Tensor:
        """values (n, d), factors (n,) -> the values."""
        ctx.save_for_backward(factors)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Gradient (n, d) -> the same, row by row times its factor."""
        (factors,) = ctx.saved_tensors
        return grad * factors.unsqueeze(-1).to(grad.dtype), None


def sparse_rows(dense: Tensor) -> Tensor:
    """A tensor as a sparse one over its first dimension, all rows in it.

    Not ``dense.to_sparse(1)``: that looks for rows of zeros, which takes longer than the rest of a training step.
    """
    index = torch.arange(dense.shape[0], device=dense.device).unsqueeze(0)
    return torch.sparse_coo_tensor(index, dense, dense.shape, check_invariants=False, is_coalesced=True)
