"""Backward passes written out, where torch's own would go over memory several times more.

Eager mode only: under torch.compile the layers compose the same formulas (:mod:`mgqe.quantizers`) for the compiler
to fuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mgqe import ops


class QuantizeRows(torch.autograd.Function):
    """Codes to vectors, straight through, and the loss, sum_i w_i ||q_i - c_i||^2 for codebook and commitment at once.

    Equals ``straight_through(q, c)`` and ``codebook_loss + beta * commitment_loss`` of :mod:`mgqe.quantizers`, whose
    two losses differ only in where their gradients go.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        counts: Tensor,
        commitment: float,
        blocks: Sequence[tuple[Tensor, int]],
        books: Sequence[Tensor],
        sparse: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Vectors (u, d) in the rows' dtype and the loss, a float32 scalar.

        Args:
            rows: (u, d).
            counts: (u,) how often each row's id came.
            commitment: beta.
            blocks: (codes (n, D_g) int32, number of their codebook), in the order of rows, n summing to u.
            books: (Dc, Kc, sc) float32 each, as they are served.
            sparse: make the parameters' gradients sparse.
            parameters: what the books were rounded from; they get the books' gradients.
        """
        parts = [ops.gather(codes, books[number]) for codes, number in blocks]
        decoded = parts[0] if len(parts) == 1 else torch.cat(parts)
        exact = rows.float()
        error = exact - decoded
        weights = counts.to(torch.float32).div_(counts.sum().clamp_(min=1).mul_(rows.shape[1]))
        weighted = error * weights.unsqueeze(-1)
        loss = torch.dot(weighted.view(-1), error.view(-1)).mul_(1 + commitment)
        ctx.save_for_backward(weighted)
        ctx.blocks, ctx.commitment, ctx.sparse, ctx.dtype = blocks, commitment, sparse, rows.dtype
        ctx.shapes = [(tuple(book.shape), parameter.dtype) for book, parameter in zip(books, parameters, strict=True)]
        ctx.set_materialize_grads(False)
        # 0 * q leaves the centroid as it is, but makes NaN of a row that is NaN or infinite.
        return decoded.addcmul_(exact, decoded.new_zeros(())).to(rows.dtype), loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        """The vectors' gradient goes to the rows; the loss's to the rows, times beta, and to the centroids chosen."""
        fixed = (None,) * 5
        if grad_loss is None:
            return grad, *fixed, *[None for _ in ctx.shapes]
        (weighted,) = ctx.saved_tensors
        grad_rows = None
        if ctx.needs_input_grad[0]:
            pull = grad_loss * (2 * ctx.commitment)
            grad_rows = weighted * pull if grad is None else torch.addcmul(grad.float(), weighted, pull)
            grad_rows = grad_rows.to(ctx.dtype)
        push = grad_loss * -2
        sums: list[Tensor | None] = [None for _ in ctx.shapes]
        start = 0
        for codes, number in ctx.blocks:
            stop = start + codes.shape[0]
            if ctx.needs_input_grad[1 + len(fixed) + number]:
                found, _ = ops.scatter(weighted[start:stop], codes, None, *ctx.shapes[number][0])
                earlier = sums[number]
                sums[number] = found if earlier is None else earlier + found
            start = stop
        grads = [
            None if total is None else total.mul_(push).to(dtype)
            for total, (_, dtype) in zip(sums, ctx.shapes, strict=True)
        ]
        return grad_rows, *fixed, *[sparse_rows(g) if ctx.sparse and g is not None else g for g in grads]


class RepeatRows(torch.autograd.Function):
    """vectors[places]. The backward pass, a sum into the distinct rows, is the kernel of ``ops.scatter``."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, places: Tensor, divisors: Tensor | None) -> Tensor:
        """(u, d) and places (n,) -> (n, d); ``divisors`` (u,) divide the gradient, where given."""
        ctx.save_for_backward(places, divisors)
        ctx.shape, ctx.dtype = vectors.shape, vectors.dtype
        return vectors.index_select(0, places)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """(n, d) -> (u, d)."""
        places, divisors = ctx.saved_tensors
        distinct, width = ctx.shape
        if distinct == 0:
            return grad.new_zeros(ctx.shape), None, None
        sums = ops.scatter(grad, places.unsqueeze(-1), None, 1, distinct, width)[0].view(ctx.shape)
        if divisors is not None:
            sums = sums / divisors.unsqueeze(-1)
        return sums.to(ctx.dtype), None, None


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


def sparse_rows(dense: Tensor) -> Tensor:
    """A tensor as a sparse one over its first dimension, all rows in it.

    Not ``dense.to_sparse(1)``: that looks for rows of zeros, which takes longer than the rest of a training step.
    """
    index = torch.arange(dense.shape[0], device=dense.device).unsqueeze(0)
    return torch.sparse_coo_tensor(index, dense, dense.shape, check_invariants=False, is_coalesced=True)
