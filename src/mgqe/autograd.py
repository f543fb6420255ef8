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
        ctx: Any, rows: Tensor, counts: Tensor, commitment: float, codes: Sequence[tuple[Tensor, int]], *books: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vectors (u, d) in the rows' dtype and the loss, a float32 scalar.

        Args:
            rows: (u, d).
            counts: (u,) how often each row's id came.
            commitment: beta.
            codes: blocks ((n, D_g) int32, number of their codebook) in the order of rows, n summing to u.
            books: (Dc, Kc, sc) float32 each.
        """
        parts = [ops.gather(block, books[number]) for block, number in codes]
        decoded = parts[0] if len(parts) == 1 else torch.cat(parts)
        exact = rows.float()
        error = exact - decoded
        weights = counts.to(torch.float32) / (counts.sum().clamp(min=1) * rows.shape[1])
        weighted = error * weights.unsqueeze(-1)
        loss = torch.dot(weighted.view(-1), error.view(-1)) * (1 + commitment)
        ctx.save_for_backward(weighted)
        ctx.codes, ctx.commitment, ctx.dtype = codes, commitment, rows.dtype
        ctx.shapes = [book.shape for book in books]
        ctx.set_materialize_grads(False)
        # 0 * q leaves the centroid as it is, but makes NaN of a row that is NaN or infinite.
        return decoded.addcmul_(exact, decoded.new_zeros(())).to(rows.dtype), loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        """The vectors' gradient goes to the rows; the loss's to the rows, times beta, and to the centroids chosen."""
        (weighted,) = ctx.saved_tensors
        grad_rows = grad
        grad_books: list[Tensor | None] = [None] * len(ctx.shapes)
        if grad_loss is not None:
            if ctx.needs_input_grad[0]:
                pull = 2 * ctx.commitment * grad_loss
                grad_rows = weighted * pull if grad is None else torch.addcmul(grad.float(), weighted, pull)
                grad_rows = grad_rows.to(ctx.dtype)
            start = 0
            for block, number in ctx.codes:
                stop = start + block.shape[0]
                if ctx.needs_input_grad[4 + number]:
                    sums, _ = ops.scatter(weighted[start:stop], block, None, *ctx.shapes[number])
                    earlier = grad_books[number]
                    grad_books[number] = sums if earlier is None else earlier + sums
                start = stop
            grad_books = [None if sums is None else sums * (-2 * grad_loss) for sums in grad_books]
        return grad_rows, None, None, None, *grad_books


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
        # Not grad.to_sparse(1): that looks for rows of zeros, which takes longer than the rest of a training step.
        index = torch.arange(grad.shape[0], device=grad.device).unsqueeze(0)
        return torch.sparse_coo_tensor(index, grad, grad.shape, check_invariants=False, is_coalesced=True)
