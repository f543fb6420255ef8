"""The training loop: epochs with early stopping, a checkpoint after each, and exact resumption.

Interrupted at any moment and run again, a phase ends with the same bits as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.recsys.data.moving import CPU
from mgqe.recsys.data.seeds import derive_seed
from mgqe.recsys.tasks.base import TrainingTask
from mgqe.recsys.tasks.metrics import standard_error
from mgqe.recsys.train.checkpoint import LAST, best_path, load_state, save_epoch
from mgqe.recsys.train.device import made_on, moved

SWEEP_STEPS = 200  # in which a first moment of TINY falls to 7e-38, which is not yet subnormal
TINY = 1e-28  # Adam adds 1e-8 to the root of the second moment: a step of such a first one is 1e-20 of the rate


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of training.

    name: "full", "annealed" or "quantised"; it enters the seeds, so that phases draw different samples.
    learning_rate, weight_decay: of the tables and the model; weight_decay is an L2 penalty, as in Adam's paper.
    centroid_learning_rate: of the codebooks. patience: after so many epochs that are no better on validation than those
        trained before them, training stops; the start is none of these.
    anneal: learning rates fall linearly to zero over max_epochs.
    beyond_error: an epoch replaces the start only if it is better by more than the paired standard error.
    """

    name: str
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_epochs: int
    patience: int
    centroid_learning_rate: float
    anneal: bool = False
    select_by: str = "full_ndcg@10"
    beyond_error: bool = False


PLANNING = "planned"


@dataclass(frozen=True)
class EpochReport:
    """One epoch of a phase, or one moment of it while `batch` < `batches`. best: of the validation figure `metric`.

    While a budget is planned (PLANNING), batches are plans, and an epoch is all of those for the rows of one width.
    """

    phase: str
    epoch: int
    max_epochs: int
    batch: int
    batches: int
    best: float | None = None
    record: dict[str, float] | None = None
    metric: str = "full_ndcg@10"


OnEpoch = Callable[[EpochReport], None]


@dataclass(frozen=True)
class PhaseResult:
    """How a phase ended; the model has the best epoch's weights.

    history: one record per epoch (validation figures, loss, seconds), epoch 0 being the start.
    optimizer: the optimiser's state at the best epoch.
    """

    best_epoch: int
    history: list[dict[str, float]]
    optimizer: dict[str, Any]

    @property
    def seconds_per_epoch(self) -> float | None:
        """Median training time of an epoch without its evaluation; None where no epoch was trained."""
        seconds = sorted(record["seconds"] for record in self.history if record["epoch"] > 0)
        return seconds[len(seconds) // 2] if seconds else None


def make_optimizer(model: nn.Module, phase: PhaseConfig) -> torch.optim.Adam:
    """Adam; codebooks have their own learning rate and no L2 penalty, since they follow the rows."""
    tables: list[nn.Parameter] = []
    codebooks: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (codebooks if _is_codebook(name) else tables).append(parameter)
    groups: list[dict[str, Any]] = [{"params": tables, "weight_decay": phase.weight_decay}]
    if codebooks:
        groups.append({"params": codebooks, "lr": phase.centroid_learning_rate, "weight_decay": 0.0})
    # One pass over the parameters instead of nine; dense tables make the step memory-bound.
    return torch.optim.Adam(groups, lr=phase.learning_rate, fused=True)


def carry_optimizer(
    source: dict[str, Any], source_names: list[str], model: nn.Module, target: torch.optim.Adam
) -> None:
    """Give `target` the state that parameters of the same name and shape had in another model's Adam.

    source: that optimiser's state, its parameters' names in its own order in `source_names`. Without the second
    moments Adam's first steps on rare rows would be as long as those on frequent ones.
    """
    by_name = {name: source["state"][at] for at, name in enumerate(source_names) if at in source["state"]}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in target.param_groups:
        for parameter in group["params"]:
            state = by_name.get(names[parameter])
            if state is not None and state["exp_avg"].shape == parameter.shape:
                target.state[parameter] = {key: value.clone() for key, value in state.items()}


def optimizer_names(model: nn.Module) -> list[str]:
    """Parameters' names in the order in which `make_optimizer` numbers them."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for name in names if not _is_codebook(name)] + [name for name in names if _is_codebook(name)]


def _set_rates(optimizer: torch.optim.Adam, phase: PhaseConfig, share: float) -> None:
    """Learning rates of the groups that `make_optimizer` made: tables first, codebooks second if there are any."""
    for group, rate in zip(optimizer.param_groups, (phase.learning_rate, phase.centroid_learning_rate), strict=False):
        group["lr"] = share * rate


def drop_tiny(optimizer: torch.optim.Adam) -> None:
    """Set moments and weights to zero that are too small to count.

    The moments of rows that no batch has fall at each step until they are subnormal, and a penalty takes the rows with
    them. Arithmetic with subnormal numbers takes Intel's processors over ten times as long.
    """
    with torch.no_grad():
        for parameter, state in optimizer.state.items():
            for values in (parameter, state["exp_avg"], state["exp_avg_sq"]):
                values.masked_fill_(values.abs() < TINY, 0.0)


def _is_codebook(name: str) -> bool:
    return ".quantizer." in f".{name}" or "codebook" in name or "centroid" in name


def run_phase(
    model: nn.Module,
    task: TrainingTask,
    phase: PhaseConfig,
    directory: Path,
    on_epoch: OnEpoch,
    optimizer: torch.optim.Adam | None = None,
    auxiliary_loss: Callable[[nn.Module], Tensor] | None = None,
    device: torch.device = CPU,
) -> PhaseResult:
    """Train until validation has not improved for `patience` epochs, then go back to the best epoch or the start.

    Modules with a method `start_epoch` are told the number of each epoch of phase "full" before it begins; what they
    then do has to follow from their state, since an epoch that was interrupted begins again.

    Epoch 0 is the model as it is passed, and may be the best one. `directory` holds the checkpoints; if it has some of
    an earlier run of the same phase, that run goes on. auxiliary_loss: added to the task's. device: of the steps and of
    the data that they take; the rest is on the CPU.
    """
    trainer = task if device == CPU else task.on(device)
    optimizer = optimizer or make_optimizer(model, phase)
    state = load_state(directory / LAST)
    if state is None:
        torch.manual_seed(derive_seed(task.seed, phase.name, "torch"))
        model.eval()
        validation = task.validation(model)
        first = {"epoch": 0, **validation.figures}
        if phase.select_by not in first:
            known = ", ".join(name for name in first if name != "epoch")
            raise ValueError(f"no validation figure {phase.select_by!r}: expected {known}")
        state = {"epoch": 0, "best_epoch": 0, "history": [first], "start_values": list(validation.values)}
        _save(directory, model, optimizer, state, True, phase)
    else:
        if state["phase"] != asdict(phase):
            raise ValueError(f"{directory} holds another training ({state['phase']}); use another --out or --overwrite")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
    history: list[dict[str, float]] = state["history"]
    epoch, best_epoch, start_values = state["epoch"], state["best_epoch"], tuple(state["start_values"])
    while epoch < phase.max_epochs and epoch - _last_gain(history, phase.select_by) < phase.patience:
        epoch += 1
        best = history[best_epoch][phase.select_by]
        started = time.perf_counter()
        if phase.name == "full":
            _start_epoch(model, epoch)
        with moved(model, optimizer, device):
            loss = run_epoch(model, trainer, phase, epoch, optimizer, auxiliary_loss, on_epoch, best, device)
        seconds = time.perf_counter() - started
        model.eval()
        validation = task.validation(model)
        record = {"epoch": epoch, "loss": loss, "seconds": seconds, **validation.figures}
        record["seconds_validation"] = time.perf_counter() - started - seconds
        history.append(record)
        is_best = record[phase.select_by] > best
        if phase.beyond_error and best_epoch == 0:
            is_best = record[phase.select_by] > best + standard_error(start_values, validation.values)
        best_epoch = epoch if is_best else best_epoch
        counters = {"epoch": epoch, "best_epoch": best_epoch, "history": history, "start_values": list(start_values)}
        _save(directory, model, optimizer, counters, is_best, phase)
        batches = task.num_batches(phase.batch_size)
        best = history[best_epoch][phase.select_by]
        on_epoch(EpochReport(phase.name, epoch, phase.max_epochs, batches, batches, best, record, phase.select_by))
    ended = load_state(best_path(directory, best_epoch))
    if ended is None:
        raise ValueError(f"{directory}: the best epoch's file is missing; train from the beginning with --overwrite")
    model.load_state_dict(ended["model"])
    return PhaseResult(best_epoch, history, ended["optimizer"])


def _last_gain(history: list[dict[str, float]], select_by: str) -> int:
    """The first of the best trained epochs; 0 before there is one.

    The start does not count. It may be hard to beat while the learning rate is high, and fall behind later.
    """
    return max(range(1, len(history)), key=lambda epoch: history[epoch][select_by], default=0)


def _start_epoch(model: nn.Module, epoch: int) -> None:
    for module in model.modules():
        start = getattr(module, "start_epoch", None)
        if start is not None:
            start(epoch)


def run_epoch(
    model: nn.Module,
    task: TrainingTask,
    phase: PhaseConfig,
    epoch: int,
    optimizer: torch.optim.Adam,
    auxiliary_loss: Callable[[nn.Module], Tensor] | None,
    on_epoch: OnEpoch = lambda report: None,
    best: float = 0.0,
    device: torch.device = CPU,
) -> float:
    """One pass over the training part, on whose device the task's batches are; returns the mean loss.

    On a GPU the steps wait for nothing: the sum of their losses is read once, at the end.
    """
    if device.type == "cuda":  # dropout draws there, and a run that goes on must draw the same
        torch.cuda.manual_seed(derive_seed(task.seed, phase.name, epoch, "cuda"))
    model.train()
    batches = task.num_batches(phase.batch_size)
    total = torch.zeros((), device=device)
    for number, batch in enumerate(task.batches(phase.batch_size, phase.name, epoch), start=1):
        if phase.anneal:
            done = (epoch - 1 + (number - 1) / batches) / phase.max_epochs
            _set_rates(optimizer, phase, 1.0 - done)
        with made_on(device):
            loss = task.loss(model, batch)
            if auxiliary_loss is not None:
                loss = loss + auxiliary_loss(model)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if number % SWEEP_STEPS == 1:
            drop_tiny(optimizer)
        total += loss.detach()
        if number % 20 == 0:
            on_epoch(EpochReport(phase.name, epoch, phase.max_epochs, number, batches, best, None, phase.select_by))
    mean = float(total) / batches
    if mean != mean:
        raise ValueError(
            f"training diverged in epoch {epoch} of phase {phase.name}: the loss is not a number; "
            f"lower the learning rate (now {phase.learning_rate}): --set learning_rate=..."
        )
    return mean


def _save(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Adam,
    counters: dict[str, Any],
    is_best: bool,
    phase: PhaseConfig,
) -> None:
    state = {
        **counters,
        "phase": asdict(phase),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    save_epoch(directory, state, is_best)
