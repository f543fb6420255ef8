"""TrainingPasses: which pass it is, when the warm-up ends, and the losses that wait to be asked for."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from mgqe.distributed import data_parallel, recomputing
from mgqe.graphs import outside_graphs
from mgqe.rows import RawRows

MAX_PENDING_LOSSES = 64  # losses kept for quantization_loss() by a loop that never asks for them


class TrainingPasses(RawRows):
    """Counts training passes of a layer, and calls for what has to happen between two of them.

    Attributes:
        warmup_steps: passes before the codebooks start.
        steps, started: buffers: passes so far, whether the warm-up is over.
    """

    warmup_steps: int
    steps: Tensor
    started: Tensor
    _revive_every: int

    def _begin_counting(self, device: torch.device) -> None:
        """The buffers, and what goes with them."""
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool, device=device))
        # The two buffers above as Python values, read once, so that a training pass never waits for a device; None
        # when they have to be read again. Two values, not a pair: a compiled graph hangs on the second alone.
        self._steps: int | None = 0
        self._started: bool | None = False
        self._started_version = self.started._version
        self._aux: list[Tensor] = []
        self._aux_read = False
        self._revival_due = False
        self._seen = self._rows_seen = -1  # parameters, and rows alone, as the last training pass saw them

    # ---- what a layer does when it is called for ------------------------------------------------------------

    def start_quantizing(self) -> None:
        """End the warm-up now."""
        raise NotImplementedError

    def _revive(self) -> None:
        raise NotImplementedError

    @property
    def _revivable(self) -> bool:
        raise NotImplementedError

    def _mark_codebooks(self) -> None:
        """Tell RowwiseAdagrad which parameters are codebooks that follow rows."""
        raise NotImplementedError

    def _tend_store(self) -> None:
        """What a store does between two steps of the optimiser."""
        raise NotImplementedError

    def _parameter_version(self) -> int:
        """A number that changes when an optimiser takes a step."""
        raise NotImplementedError

    # ---- passes ----------------------------------------------------------------------------------------------

    @property
    def quantizing(self) -> bool:
        """Whether the warm-up is over: the forward pass returns quantised vectors."""
        if self.started.is_meta:
            return bool(self._started)
        # Averaged copies of models and broadcasts between processes write into the buffer itself.
        if self._started is None or (
            not torch.compiler.is_compiling() and self.started._version != self._started_version
        ):
            self._started, self._steps = bool(self.started), None
            self._started_version = self.started._version
        return self._started

    def _passes(self) -> int:
        """Training passes so far."""
        if self._steps is None:
            self._steps = int(self.steps)
        return self._steps

    def _set_progress(self, steps: int, started: bool) -> None:
        self.steps.fill_(steps)
        self.started.fill_(started)
        self._steps, self._started = steps, started
        self._started_version = self.started._version

    def _begin_pass(self) -> None:
        """What comes before every forward pass."""
        counts = self.training and torch.is_grad_enabled()
        if counts and self.sparse and not torch.compiler.is_compiling() and (parallel := data_parallel()) is not None:
            raise sparse_in_parallel(parallel, self)
        if torch.compiler.is_compiling():
            if counts:
                self._count_outside_graphs()
        elif counts:
            self._count_training_pass()
        else:
            self._forget_losses()

    @outside_graphs
    def _count_outside_graphs(self) -> None:
        self._count_training_pass()

    def _forget_losses(self) -> None:
        if self._aux_read or len(self._aux) >= MAX_PENDING_LOSSES:
            self._aux.clear()
            self._aux_read = False

    def _count_training_pass(self) -> None:
        """Count one training pass; end the warm-up when it is over; look for dead centroids now and then.

        The first pass after an optimiser's step forgets the losses of the passes before it, read or not. Revival
        waits for that moment too: between two calls of one step the first one's graph still needs the codebooks.

        A pass that gradient checkpointing runs again must find everything as it was, and was counted the first time.
        """
        if recomputing():
            self._warn_of_reentrance()
            return
        version = self._parameter_version()
        stepped = version != self._seen
        if stepped and self.max_norm is None:  # max_norm itself changes rows in a forward pass
            self._aux.clear()
        if stepped:
            self._mark_codebooks()
        if self.store is not None and self.raw_weight._version != self._rows_seen:
            self._tend_store()  # not when codebooks alone have stepped: the rows' gradients may be waiting for theirs
            self._rows_seen, version = self.raw_weight._version, self._parameter_version()
        self._forget_losses()
        quantizing, steps = self.quantizing, self._passes() + 1
        self._steps = steps
        self.steps.add_(1)
        if not quantizing:
            if steps > self.warmup_steps:
                self.start_quantizing()
                version = self._parameter_version()
        else:
            self._revival_due = self._revivable and (self._revival_due or steps % self._revive_every == 0)
            if self._revival_due and stepped:
                self._revive()
                self._revival_due = False
                version = self._parameter_version()
        self._seen = version

    def _keep_loss(self, loss: Tensor) -> None:
        if not recomputing():
            self._aux.append(loss)

    @outside_graphs
    def _keep_loss_outside_graphs(self, loss: Tensor) -> None:
        self._keep_loss(loss)

    def _warn_of_reentrance(self) -> None:
        if self.max_norm is None and self._seen != self._parameter_version():  # nothing was counted the first time
            warnings.warn(
                f"a {type(self).__name__} of {self.num_embeddings} x {self.embedding_dim} is inside a reentrant "
                "checkpoint, where its training passes are not seen and its quantisation loss is lost: call "
                "torch.utils.checkpoint.checkpoint with use_reentrant=False, or leave the layer outside",
                stacklevel=2,
            )

    def auxiliary_loss(self) -> Tensor | None:
        """The sum of the losses since the training pass after the last reading, None if there are none."""
        self._aux_read = True
        if len(self._aux) == 1:
            return self._aux[0]
        return torch.stack(self._aux).sum() if self._aux else None


def sparse_in_parallel(parallel: nn.Module, layer: nn.Module) -> RuntimeError:
    """What to say of a layer with sparse gradients inside DistributedDataParallel, which takes none but torch's."""
    path = next((name for name, module in parallel.named_modules() if module is layer), "")
    return RuntimeError(
        f"{path.removeprefix('module.') or 'the layer'}: sparse=True does not go with DistributedDataParallel, which "
        "takes sparse gradients from torch's own classes alone: make the layer with sparse=False"
    )
