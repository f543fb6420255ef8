"""Gradients written out, where torch's own would go over memory several times more, or step by step through Python.

Eager mode only: under torch.compile the layers compose the same formulas (:mod:`mgqe.codec.equations`) for the compiler
to fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mgqe import ops
from mgqe.checks.waiting import reads_wait
from mgqe.ops import reference
from mgqe.ops.layout.searches import Searches


def loss_weights(counts: Tensor | None, rows: Tensor) -> Tensor:
    """How often each of the rows (u, d) counts, None for once -> its share (u,) float32 of a mean over ids and d."""
    weights = ops.row_weights(counts, *rows.shape)
    return weights if isinstance(weights, Tensor) else torch.full(rows.shape[:1], weights, device=rows.device)


class ReadRows(torch.autograd.Function):
    """Rows of a weight, whose gradient comes back dense or sparse over rows."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor, sparse: bool, left_out: int | None = None) -> Tensor:
        """weight (N, d), row numbers (u,) -> (u, d); a sparse gradient has no entry for the row ``left_out``."""
        # Not save_for_backward, which one backward pass frees: the task's loss and the layer's may have a pass each.
        ctx.index, ctx.sparse, ctx.left_out, ctx.num_rows = index, sparse, left_out, weight.shape[0]
        return weight.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(u, d) -> (N, d)."""
        shape, index = (ctx.num_rows, grad.shape[1]), ctx.index
        if not ctx.sparse:
            return grad.new_zeros(shape).index_add_(0, index, grad), None, None, None
        if ctx.left_out is not None and reads_wait(index.device):  # where a mask would wait to learn its shape
            grad = grad.masked_fill((index == ctx.left_out).unsqueeze(-1), 0.0)
        elif ctx.left_out is not None:
            index, grad = index[index != ctx.left_out], grad[index != ctx.left_out]
        return torch.sparse_coo_tensor(index.unsqueeze(0), grad, shape, check_invariants=False), None, None, None


class MaskRows(torch.autograd.Function):
    """:func:`mask_rows`, outside of graphs."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, mask: Tensor, zeros: bool) -> Tensor:
        """rows (u, d), mask (u,) -> (u, d)."""
        ctx.mask = mask.unsqueeze(-1)
        return rows.masked_fill(ctx.mask, 0.0) if zeros else rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """(u, d) -> (u, d)."""
        return grad.masked_fill(ctx.mask, 0.0), None, None


def mask_rows(rows: Tensor, mask: Tensor, zeros: bool) -> Tensor:
    """Rows (u, d), of which those of a mask (u,) get no gradient, and are set to zero if that is asked for."""
    if not torch.compiler.is_compiling():
        return MaskRows.apply(rows, mask, zeros)  # type: ignore[no-any-return, no-untyped-call]
    mask = mask.unsqueeze(-1)
    return rows.masked_fill(mask, 0.0) if zeros else torch.where(mask, rows.detach(), rows)


class RepeatVectors(torch.autograd.Function):
    """The vectors of distinct ids -> those of all ids of a batch; half-precision gradients are added up in float32."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, index: Tensor, counts: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(u, d), positions (n,) -> (n, d) of ``dtype``; gradients are divided by ``counts`` (u,) if there are any."""
        ctx.index, ctx.counts, ctx.shape, ctx.dtype = index, counts, vectors.shape, vectors.dtype
        return vectors.to(dtype).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """(n, d) -> (u, d)."""
        kind = torch.promote_types(grad.dtype, torch.float32)
        native = (
            grad.device.type == "cpu"
            and not reads_wait(grad.device)
            and kind == torch.float32
            and not torch.is_grad_enabled()
        )
        if native:
            total = ops.sum_rows(grad.float(), ctx.index, ctx.shape[0])
        else:
            zeros = torch.zeros(ctx.shape, dtype=kind, device=grad.device)
            total = zeros.index_add(0, ctx.index, grad.to(kind))
        if ctx.counts is not None:
            total = total / ctx.counts.unsqueeze(-1)
        return total.to(ctx.dtype), None, None, None


class QuantizeRows(torch.autograd.Function):
    """Rows to their codes' vectors, straight through, and the loss of codebook and commitment at once.

    Equals ``straight_through`` and ``codebook_loss + beta * commitment_loss`` of :mod:`mgqe.codec.equations`; the two
    losses have one value, sum_i w_i ||q_i - c_i||^2, and differ in where their gradients go.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weights: Tensor,
        blocks: Sequence[tuple[Tensor, int]],
        books: Sequence[Tensor],
        commitment: float,
        sparse: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Vectors (u, d), float64 for rows of float64 and else float32, and the loss, a float32 scalar.

        Args:
            rows: (u, d).
            weights: (u,) float32, each row's share in the loss.
            blocks: (codes (n, D_g) int32, number of their codebook), in the order of rows, n summing to u.
            books: (Dc, Kc, sc) float32 each, as they are served.
            commitment: beta.
            sparse: the gradients of the codebooks are sparse.
            parameters: what the books were rounded from; they get the books' gradients.
        """
        sizes = [len(codes) for codes, _ in blocks]
        results = [
            ops.decode_error(block_rows, codes, books[number], share)
            for block_rows, share, (codes, number) in zip(
                torch.split(rows.float(), sizes), torch.split(weights, sizes), blocks, strict=True
            )
        ]
        vectors, errors, losses = results[0] if len(results) == 1 else (torch.cat(each) for each in zip(*results))
        ctx.errors, ctx.weights, ctx.blocks, ctx.books = errors, weights, blocks, books
        ctx.commitment, ctx.sparse, ctx.inputs = commitment, sparse, (rows, *parameters)
        ctx.set_materialize_grads(False)
        vectors = vectors.to(torch.promote_types(rows.dtype, torch.float32))
        return vectors, losses.sum().mul_(1 + commitment)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        """The vectors' gradient goes to the rows; the loss's to the rows, times beta, and to the centroids chosen."""
        if torch.is_grad_enabled():  # create_graph=True, as a gradient penalty asks for
            return _composed_gradients(ctx, grad, grad_loss)
        parameters = ctx.inputs[1:]
        grad_rows = _row_gradient(ctx, ctx.errors, grad, grad_loss)
        sums: list[Tensor | None] = [None for _ in parameters]
        if grad_loss is not None:
            errors = torch.split(ctx.errors, [len(codes) for codes, _ in ctx.blocks])
            for block_errors, (codes, number) in zip(errors, ctx.blocks, strict=True):
                if ctx.needs_input_grad[6 + number]:
                    more, _ = ops.scatter(block_errors, codes, None, *ctx.books[number].shape)
                    before = sums[number]
                    sums[number] = more if before is None else before + more
            for number, (total_of_book, parameter) in enumerate(zip(sums, parameters, strict=True)):
                if total_of_book is not None:
                    dense = total_of_book.mul_(grad_loss * -2).to(parameter.dtype)
                    sums[number] = sparse_rows(dense) if ctx.sparse else dense
        return grad_rows, None, None, None, None, None, *sums


def _composed_gradients(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of :class:`QuantizeRows` with a graph of their own, so that they can be differentiated again."""
    parameters = ctx.inputs[1:]
    books = [book + (p.float() - p.detach().float()) for book, p in zip(ctx.books, parameters, strict=True)]
    decoded = torch.cat([reference.gather(codes, books[number]) for codes, number in ctx.blocks])
    first, *others = _gradients_of(ctx, decoded, grad, grad_loss)
    return first, None, None, None, None, None, *others


def _gradients_of(ctx: Any, decoded: Tensor, grad: Tensor | None, grad_loss: Tensor | None) -> list[Tensor | None]:
    """Those of the inputs of a function that quantises rows, of what the codes decode to in the parameters' graph.

    Raises:
        RuntimeError: the layer has sparse gradients, which torch differentiates once.
    """
    if ctx.sparse:
        raise _refused_twice()
    exact = ctx.inputs[0].float()
    codebook_loss = (ctx.weights * (decoded - exact.detach()).square().sum(1)).sum()
    commitment_loss = (ctx.weights * (exact - decoded.detach()).square().sum(1)).sum()
    loss = codebook_loss + ctx.commitment * commitment_loss
    # The vectors' values are not needed, only how they depend on the rows: straight through.
    return differentiable_gradients([(exact, grad), (loss, grad_loss)], ctx.inputs)


class QuantizeByTier(torch.autograd.Function):
    """As :class:`QuantizeRows`, of rows of all tiers at once, by the kernels for GPUs."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        counts: Tensor | None,
        tiers: Tensor | None,
        searches: Searches,
        books: Sequence[Tensor],
        commitment: float,
        sparse: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Vectors (u, d), float64 for rows of float64 and else float32, and the loss, a float32 scalar.

        Args:
            rows: (u, d).
            counts: (u,) how often each row counts in the loss; None for once.
            tiers: (u,) each row's tier; None where there is one.
            searches: where each tier's centroids are in the books, one after another.
            books, commitment, sparse, parameters: as in :class:`QuantizeRows`.
        """
        flat = torch.cat([book.reshape(-1) for book in books]) if len(books) > 1 else books[0].reshape(-1)
        weights = ops.row_weights(counts, *rows.shape)
        made = ops.quantize_by_tier(rows.float(), tiers, weights, flat, searches, 1 + commitment)
        # Nothing that is returned: it would hold what holds it, until the next garbage collection.
        ctx.codes, ctx.errors = made.codes, made.errors
        ctx.weights, ctx.tiers, ctx.searches, ctx.book = weights, tiers, searches, flat
        ctx.commitment, ctx.sparse, ctx.inputs = commitment, sparse, (rows, *parameters)
        ctx.set_materialize_grads(False)
        return made.vectors.to(torch.promote_types(rows.dtype, torch.float32)), made.loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        """As that of :class:`QuantizeRows`."""
        rows, *parameters = ctx.inputs
        if torch.is_grad_enabled():
            changes = torch.cat([(p.float() - p.detach().float()).reshape(-1) for p in parameters])
            decoded = (ctx.book + changes)[ctx.searches.places(ctx.codes, ctx.tiers)]
            if isinstance(ctx.weights, float):
                ctx.weights = loss_weights(None, rows)
            first, *others = _gradients_of(ctx, decoded, grad, grad_loss)
            return first, None, None, None, None, None, None, *others
        grad_rows = _row_gradient(ctx, ctx.errors, grad, grad_loss)
        of_parameters: list[Tensor | None] = [None for _ in parameters]
        if grad_loss is not None and any(ctx.needs_input_grad[7:]):
            sums = ops.scatter_by_tier(ctx.errors, ctx.tiers, ctx.codes, ctx.searches, grad_loss, -2.0)
            parts = torch.split(sums, [p.numel() for p in parameters])
            for number, (part, parameter) in enumerate(zip(parts, parameters, strict=True)):
                if ctx.needs_input_grad[7 + number]:
                    dense = part.view(parameter.shape).to(parameter.dtype)
                    of_parameters[number] = sparse_rows(dense) if ctx.sparse else dense
        return grad_rows, None, None, None, None, None, None, *of_parameters


class QuantizeSoftly(torch.autograd.Function):
    """Rows of all tiers through the keys that win a softmax, by the kernels for GPUs: DPQ-SX in training."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        counts: Tensor | None,
        tiers: Tensor | None,
        searches: tuple[Searches, Searches],
        running: Sequence[tuple[Tensor, Tensor]],
        constants: tuple[float, float],
        values: Sequence[Tensor],
        sparse: bool,
        composed: Callable[[Tensor], Tensor],
        *parameters: Tensor,
    ) -> Tensor:
        """Vectors (u, d), float64 for rows of float64 and else float32.

        Args:
            rows: (u, L).
            counts: (u,), 0 for rows that the statistics leave out; None: none is.
            tiers: (u,) each row's tier; None where there is one.
            searches: where the tiers' keys are in their codebooks, and their values.
            running, constants: statistics that are moved, and momentum and eps; see :func:`mgqe.ops.choose_softly`.
            values: (Dc, Kc, sc) float32 each, as they are served.
            sparse: the gradients of the codebooks are sparse.
            composed: rows -> the same vectors by torch's operators, with a graph.
            parameters: the keys, then what the values were rounded from.
        """
        keys, served = (
            torch.cat([book.float().reshape(-1) for book in each]) for each in (parameters[: len(values)], values)
        )
        made = ops.choose_softly(rows.float(), tiers, counts, keys, served, searches, running, *constants)
        vectors = made.vectors.to(torch.promote_types(rows.dtype, torch.float32))
        # Without what is returned, see QuantizeByTier.
        ctx.made = made._replace(vectors=made.vectors.new_empty(0))
        ctx.given, ctx.sparse, ctx.composed = (tiers, counts, keys, served, searches), sparse, composed
        ctx.inputs = (rows, *parameters)
        return vectors  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Through the softmax and the statistics to rows and keys, and from the winners to their values."""
        rows, *parameters = ctx.inputs
        nothing = [None] * 8
        if torch.is_grad_enabled():  # create_graph=True, as a gradient penalty asks for
            if ctx.sparse:
                raise _refused_twice()
            first, *others = differentiable_gradients([(ctx.composed(rows), grad)], ctx.inputs)
            return first, *nothing, *others
        of_rows, *of_books = ops.soft_gradients(ctx.made, grad.float(), rows.float(), *ctx.given)
        halves = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        gradients = []
        for flat, half in zip(of_books, halves, strict=True):
            for part, parameter in zip(torch.split(flat, [p.numel() for p in half]), half, strict=True):
                dense = part.view(parameter.shape).to(parameter.dtype)
                gradients.append(sparse_rows(dense) if ctx.sparse else dense)
        needed = ctx.needs_input_grad[9:]
        return (
            of_rows.to(rows.dtype) if ctx.needs_input_grad[0] else None,
            *nothing,
            *(each if need else None for each, need in zip(gradients, needed, strict=True)),
        )


def _refused_twice() -> RuntimeError:
    return RuntimeError(
        "create_graph=True (a gradient penalty, a second derivative) does not go with sparse=True, whose gradients "
        "are differentiated once: make the layer with sparse=False"
    )


def _row_gradient(ctx: Any, errors: Tensor, grad: Tensor | None, grad_loss: Tensor | None) -> Tensor | None:
    """That of rows through which the vectors' gradient goes straight, and of the commitment loss."""
    if not ctx.needs_input_grad[0]:
        return None
    total = torch.zeros_like(errors) if grad is None else grad
    if grad_loss is not None:
        total = torch.addcmul(total, errors.to(total.dtype), grad_loss.to(total.dtype), value=2 * ctx.commitment)
    return total.to(ctx.inputs[0].dtype)


def differentiable_gradients(
    outputs: Sequence[tuple[Tensor, Tensor | None]], inputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of inputs, with a graph of their own, from outputs and their gradients; None for what has none."""
    known = [(out, g.to(out.dtype)) for out, g in outputs if g is not None]
    trained = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    gradients = iter(
        torch.autograd.grad(
            [out for out, _ in known], trained, [g for _, g in known], create_graph=True, allow_unused=True
        )
    )
    return [next(gradients) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


class GatherFlat(torch.autograd.Function):
    """Numbers of a flat tensor; their gradients are added up at once, where torch's own would do it one by one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        """values (E,), places int64 (n, L) -> (n, L)."""
        ctx.save_for_backward(places)
        ctx.size = values.shape
        return values.index_select(0, places.view(-1)).view(places.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """(n, L) -> (E,)."""
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size).index_add(0, places.view(-1), grad.reshape(-1)), None


class SparseGradient(torch.autograd.Function):
    """Identity whose backward pass makes the gradient sparse, so that SparseAdam takes the whole layer."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """values (rows, ...), returned as they are."""
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Dense gradient -> sparse over its first dimension."""
        return sparse_rows(grad)


def with_sparse_gradient(parameter: Tensor) -> Tensor:
    """A codebook whose gradient is sparse; in a graph dense, which makes no sparse tensors but those of look-ups."""
    if torch.compiler.is_compiling():
        return parameter
    return SparseGradient.apply(parameter)  # type: ignore[no-any-return, no-untyped-call]


class ScaleGradient(torch.autograd.Function):
    """Identity whose backward pass multiplies each row's gradient by a number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factors: Tensor) -> Tensor:
        """values (n, d), factors (n,) -> the values."""
        ctx.save_for_backward(factors)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Gradient (n, d), each row times its factor."""
        (factors,) = ctx.saved_tensors
        return grad * factors.unsqueeze(-1).to(grad.dtype), None


def sparse_rows(dense: Tensor, num_rows: int | None = None) -> Tensor:
    """A tensor as a sparse one over its first dimension, all rows in it; of ``num_rows``, if these are more.

    Not ``dense.to_sparse(1)``: that looks for rows of zeros, which takes longer than the rest of a training step.
    """
    index = torch.arange(dense.shape[0], device=dense.device).unsqueeze(0)
    shape = (dense.shape[0] if num_rows is None else num_rows, *dense.shape[1:])
    return torch.sparse_coo_tensor(index, dense, shape, check_invariants=False, is_coalesced=True)
