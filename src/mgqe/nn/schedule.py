"""TrainingPasses: which pass it is, when the warm-up ends, and what happens between two passes."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from mgqe.nn.context.ddp import data_parallel, recomputing
from mgqe.nn.context.graphs import outside_graphs
from mgqe.nn.pending import CountsLosses, PendingLosses
from mgqe.nn.rows.raw import RawRows


class TrainingPasses(CountsLosses, RawRows):
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
        self._pending = PendingLosses()
        self._revival_due = False
        # Versions as the last training pass saw them: of all parameters, of rows alone, and see _step_version.
        self._seen = self._rows_seen = self._step_seen = -1
        self._identity_seen = 0  # of the rows: torch.func.functional_call passes others

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

    def _codebook_version(self) -> int:
        """A number that changes when an optimiser moves the codebooks."""
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

    @outside_graphs
    def _count_outside_graphs(self) -> None:
        self._count_training_pass()

    def _step_version(self) -> int:
        """A number that changes when the step is over to which the last passes belong.

        With ``max_norm`` a forward pass changes rows itself: there the codebooks alone tell.
        """
        return self._parameter_version() if self.max_norm is None else self._codebook_version()

    @property
    def _step_is_over(self) -> bool:
        """Whether an optimiser has taken a step since the last pass."""
        return self._step_seen != self._step_version()

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
        if stepped and self._step_is_over:
            self._pending.end_step()
        if stepped:
            self._mark_codebooks()
        if self.store is not None and self.raw_weight._version != self._rows_seen:
            self._tend_store()  # not when codebooks alone have stepped: the rows' gradients may be waiting for theirs
            self._rows_seen, version = self.raw_weight._version, self._parameter_version()
        self._pending.begin_pass()
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
        self._seen, self._identity_seen = version, id(self.raw_weight)
        self._step_seen = version if self.max_norm is None else self._codebook_version()

    def _keep_loss(self, loss: Tensor) -> None:
        if not recomputing():
            self._pending.add(loss)

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

    @property
    def _losses_are_past(self) -> bool:
        # Versions of other tensors than the pass had (torch.func.functional_call) say nothing about a step.
        return self._identity_seen == id(self.raw_weight) and self._step_is_over


def sparse_in_parallel(parallel: nn.Module, layer: nn.Module) -> RuntimeError:
    """What to say of a layer with sparse gradients inside DistributedDataParallel, which takes none but torch's."""
    path = next((name for name, module in parallel.named_modules() if module is layer), "")
    return RuntimeError(
        f"{path.removeprefix('module.') or 'the layer'}: sparse=True does not go with DistributedDataParallel, which "
        "takes sparse gradients from torch's own classes alone: make the layer with sparse=False"
    )
