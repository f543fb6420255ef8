"""calibrate: the metric of every table of a trained model, from the gradients of some batches."""

from __future__ import annotations

import math
import operator
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgqe.checks.inference import outside_inference
from mgqe.codec.metric import Metric
from mgqe.convert.progress import Progress, shown
from mgqe.convert.table_gradients import CalibratedTable, add_gradients, tables_of, watched
from mgqe.nn.metric import metric_of

LossFn = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What :func:`calibrate` has found, and its batches to judge other models by.

    Attributes:
        metrics: path of a table -> what an error in one of its rows costs; ``lookups`` are those of one batch. The
            identity for tables that the loss does not reach.
        num_batches: batches that the metrics come from.
        num_skipped: batches that were left out, since gradients were NaN or infinite.
        mean_loss: over the batches that were not.
    """

    metrics: Mapping[str, Metric] = field(repr=False)
    num_batches: int
    num_skipped: int
    mean_loss: float
    batches: Sequence[tuple[int, Any]] = field(repr=False)  # each with its number, which seeds random draws
    loss_fn: LossFn = field(repr=False)

    @outside_inference
    def loss(self, model: nn.Module) -> float:
        """The mean loss of a model over the same batches, in eval mode and without gradients.

        What ``loss_fn`` draws with torch's generators, such as negatives, is the same for every model.

        Args:
            model: such as the calibrated one with smaller tables.
        """
        with undisturbed(model), torch.no_grad():
            losses = [float(_loss(self.loss_fn, model, batch, number)) for number, batch in self.batches]
        return sum(losses) / len(losses)


@outside_inference
def calibrate(
    model: nn.Module, batches: Iterable[Any], loss_fn: LossFn, *, progress: Progress | bool | None = None
) -> Calibration:
    """Measure what an error in a row costs, table by table: E[g g^T] of the gradients of looked-up vectors.

    The model runs as it is, in eval mode. Its parameters, their ``grad``, its buffers, its modes and torch's random
    state are afterwards what they were. (As in every forward pass, rows beyond an embedding's ``max_norm`` are
    shortened.) Some 50 batches of the size that it was trained with are enough.

    Args:
        model: a trained model with nn.Embedding and nn.EmbeddingBag modules, or with quantised layers. A weight that
            an output layer shares is measured in both places: each row that it reads is one look-up.
        batches: a list, a DataLoader or any iterable of what ``loss_fn`` takes. They stay in memory.
        loss_fn: called as ``loss_fn(model, batch)``; returns the loss that was trained, a scalar tensor, without
            penalties on weights. For batch i torch's generators are seeded with i.
        progress: called with the batches done and those in all (None if not known). Default: a bar where standard
            error is a terminal, elsewhere a line every five seconds, and a line at the end. False: neither.

    Returns:
        the metrics by path, and the batches to judge other tables by.

    Raises:
        ValueError: a model without tables; no batches; a loss that is no scalar, not finite or without a gradient; no
            table that the loss reaches; gradients that are not finite in every batch. The message names the batch.
        TypeError: no model, or a loss that is no tensor.

    Warns:
        UserWarning: tables that no batch has ids of, and tables that the loss does not depend on.

    Under DistributedDataParallel each process measures its own batches: give all of them the same.

    Example:
        >>> import torch, mgqe
        >>> model = torch.nn.Sequential(torch.nn.Embedding(1_000, 8), torch.nn.Linear(8, 1))
        >>> batches = [(torch.randint(1_000, (64,)), torch.randn(64, 1)) for _ in range(50)]
        >>> def loss_fn(model, batch):
        ...     ids, targets = batch
        ...     return torch.nn.functional.mse_loss(model(ids), targets)
        >>> calibration = mgqe.calibrate(model, batches, loss_fn, progress=False)
        >>> calibration.metrics["0"].source, calibration.metrics["0"].lookups
        ('gradients', 64.0)
        >>> calibration.loss(model) == calibration.mean_loss
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got {type(model).__name__}: pass an instance of nn.Module")
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, such as a list, got {type(batches).__name__}")
    tables = tables_of(model)
    used: list[tuple[int, Any]] = []
    losses: list[float] = []
    count, start = 0, time.perf_counter()
    hint = operator.length_hint(batches, -1)
    total = None if hint < 0 else hint
    with shown(progress, "calibrate") as report, undisturbed(model), watched(tables) as passes, torch.enable_grad():
        for number, batch in enumerate(batches):
            count += 1
            passes.clear()
            loss = _loss(loss_fn, model, batch, number)
            if add_gradients(tables, passes, loss, number):
                used.append((number, batch))
                losses.append(float(loss.detach()))
            report(count, total)
    _check(tables, count, len(used))
    mean_loss = sum(losses) / len(losses)
    if progress is None or progress is True:
        note = f", {count - len(used)} with gradients that are not finite left out" if count > len(used) else ""
        seconds = time.perf_counter() - start
        print(f"mgqe.calibrate: {count} batches{note}, mean loss {mean_loss:.4g}, {seconds:.1f} s", file=sys.stderr)
    metrics = {table.path: metric_of(table.moment, table.lookups, len(used)) for table in tables}
    return Calibration(metrics, len(used), count - len(used), mean_loss, used, loss_fn)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within: the model in eval mode, out of torch.compile's graphs. Afterwards: modes and random states as before."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(sorted(devices)))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled; compiled modules do not see new hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if isinstance(model, DistributedDataParallel):
            stack.enter_context(model.no_sync())
        if any(isinstance(module, nn.RNNBase) for module, _ in modes):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # which has no gradients in eval mode
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def _loss(loss_fn: LossFn, model: nn.Module, batch: Any, number: int) -> Tensor:
    """The loss of a batch, a scalar.

    Raises:
        TypeError: no tensor. ValueError: no scalar, not finite, or no gradient where there should be one.
    """
    torch.manual_seed(number)
    loss = loss_fn(model, batch)
    if not isinstance(loss, Tensor):
        raise TypeError(f"batch {number}: loss_fn must return a scalar tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"batch {number}: loss_fn must return a scalar, got shape {tuple(loss.shape)}: take its mean")
    if not torch.is_grad_enabled():
        return loss
    if not math.isfinite(float(loss.detach())):
        raise ValueError(f"batch {number}: the loss is {float(loss.detach())}: is the model trained, the batch valid?")
    if not loss.requires_grad:
        raise ValueError(
            f"batch {number}: the loss has no gradient: loss_fn must neither run under torch.no_grad() nor detach "
            "what it computes, and end in a differentiable loss"
        )
    return loss.reshape(())


def _check(tables: Sequence[CalibratedTable], count: int, num_used: int) -> None:
    """Raise, or warn, where there is nothing to make a metric of."""
    if not count:
        raise ValueError("there are no batches to calibrate with: is the iterator used up?")
    if not num_used:
        raise ValueError(f"gradients are NaN or infinite in all {count} batches: train the model, or lower its scale")
    unseen = [table.path for table in tables if not table.is_used]
    unreached = [table.path for table in tables if table.is_used and not bool(table.moment.any())]
    texts = []
    if unseen:
        texts.append(f"no batch looks ids up in {', '.join(unseen)}")
    if unreached:
        texts.append(f"the loss does not depend on {', '.join(unreached)}")
    if len(unseen) + len(unreached) == len(tables):
        raise ValueError(f"no table can be calibrated: {'; '.join(texts)}")
    if texts:
        warnings.warn(
            f"calibrate: {'; '.join(texts)}; errors there count alike in all directions", stacklevel=4
        )  # beyond the decorator
