"""The gradients of a plan's codes, written out; see :mod:`mgqe.nn.quantizers.autograd`. Eager mode only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mgqe import ops
from mgqe.checks.waiting import reads_wait
from mgqe.codec.mixed import whole_steps
from mgqe.nn.quantizers.autograd import differentiable_gradients, loss_weights, sparse_rows


class QuantizeCoordinates(torch.autograd.Function):
    """Rows to the vectors of their codes, straight through, and the loss in coordinates.

    Equals ``MixedQuantizer.forward``: ``straight_through``, and ``codebook_loss + beta * commitment_loss`` of
    coordinates z; the two losses have one value, sum_i w_i ||z_i - c_i||^2, and differ in where their gradients go.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        counts: Tensor | None,
        tier_rows: Sequence[int] | Tensor,
        coder: ops.MixedCoder,
        values: Tensor,
        commitment: float,
        sparse: bool,
        parameter: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Vectors (u, d), float64 for rows of float64 and else float32, and the loss, a float32 scalar.

        Args:
            rows: (u, d), tier after tier.
            counts: (u,) how often each row counts in the loss; None for once.
            tier_rows: how many of the rows each tier has, or on a GPU each row's tier (u,).
            coder: the plan.
            values: of all codebooks, as the coder takes them.
            commitment: beta.
            sparse: the gradient of the parameter is sparse, with entries for those of its rows that hold values.
            parameter: what the values were made from, with room behind them; None where they do not train.
        """
        made = ops.quantize_mixed(rows.float(), counts, tier_rows, coder, values)
        # Not save_for_backward, which one backward pass frees: the task's loss and the layer's may have a pass each.
        # And nothing that is returned: it would hold what holds it, until the next garbage collection.
        ctx.codes, ctx.errors = made.codes, made.errors
        ctx.counts, ctx.tier_rows, ctx.coder, ctx.values = counts, tier_rows, coder, values
        ctx.commitment, ctx.sparse, ctx.rows, ctx.parameter = commitment, sparse, rows, parameter
        ctx.set_materialize_grads(False)
        vectors = made.vectors.to(torch.promote_types(rows.dtype, torch.float32))
        return vectors, made.loss * (1 + commitment)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        """The vectors' gradient goes to the rows; the loss's to the rows, times beta, and to the centroids chosen."""
        if torch.is_grad_enabled():  # create_graph=True, as a gradient penalty asks for
            return _composed_gradients(ctx, grad, grad_loss)
        of_rows = of_parameter = None
        if ctx.needs_input_grad[0]:
            of_rows = _row_gradient(ctx, grad, grad_loss).to(ctx.rows.dtype)
        if grad_loss is not None and ctx.needs_input_grad[7]:
            of_parameter = _parameter_gradient(ctx, grad_loss)
        return of_rows, None, None, None, None, None, None, of_parameter


def _row_gradient(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> Tensor:
    errors: Tensor = ctx.errors
    decoder: Tensor = ctx.coder.encoder.T
    if grad_loss is None:
        return torch.zeros_like(ctx.rows) if grad is None else grad
    factor: float = 2 * ctx.commitment
    if grad is None:
        scaled: Tensor = errors @ decoder * (grad_loss * factor)
        return scaled
    if grad.dtype == torch.float32 and grad.device.type == "cpu" and not reads_wait(grad.device):
        factor, scales = float(grad_loss) * factor, ctx.coder.encoder_scales
        if scales is not None:
            return torch.addcmul(grad, errors, scales, value=factor)
        return torch.addmm(grad, errors, decoder, alpha=factor)
    return torch.addcmul(grad, (errors @ decoder).to(grad.dtype), grad_loss.to(grad.dtype), value=factor)


def _parameter_gradient(ctx: Any, grad_loss: Tensor) -> Tensor:
    """That of a parameter (R, 256, 1): of the rows that hold values, if it is sparse."""
    num_rows, *shape = ctx.parameter.shape
    of_row = math.prod(shape)
    used = -(-ctx.coder.num_values // of_row) if ctx.sparse else num_rows
    sums = ops.scatter_mixed(ctx.errors, ctx.codes, ctx.tier_rows, ctx.coder, grad_loss * -2, used * of_row)
    dense = sums.view(used, *shape).to(ctx.parameter.dtype)
    return sparse_rows(dense, num_rows) if ctx.sparse else dense


def _composed_gradients(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients with a graph of their own, so that they can be differentiated again."""
    rows, parameter, coder = ctx.rows, ctx.parameter, ctx.coder
    exact = rows.float()
    z = (exact - coder.mean) @ coder.encoder
    moved = torch.zeros_like(ctx.values)
    if parameter is not None:
        flat = parameter.view(-1)[: len(moved)].float()
        moved = flat - flat.detach()
    # Where the numbers are that the codes name; coordinates, units and steps are those of all tiers.
    tiers = ctx.tier_rows
    if not isinstance(tiers, Tensor):
        tiers = torch.arange(len(tiers), device="cpu").repeat_interleave(torch.tensor(tiers, device="cpu")).to(z.device)
    places = coder.searches.places(ctx.codes, tiers)
    named = ctx.values[places]
    if coder.steps is not None:
        named = whole_steps(named * coder.units, coder.steps).clamp(-127, 127) * coder.steps
    centroids = named + moved[places] * coder.units
    weights = loss_weights(ctx.counts, rows)
    codebook_loss = (weights * (centroids - z.detach()).square().sum(1)).sum()
    commitment_loss = (weights * (z - centroids.detach()).square().sum(1)).sum()
    loss = codebook_loss + ctx.commitment * commitment_loss
    # The vectors' values are not needed, only how they depend on the rows: straight through.
    of_rows, of_parameter = differentiable_gradients([(exact, grad), (loss, grad_loss)], [rows, parameter])
    if ctx.sparse and of_parameter is not None:
        of_parameter = sparse_rows(of_parameter)
    return of_rows, None, None, None, None, None, None, of_parameter
