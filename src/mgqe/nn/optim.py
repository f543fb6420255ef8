"""RowwiseAdagrad: one number of optimiser state per row, and steps that rows of 16 bits do not lose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mgqe import ops
from mgqe.checks.scalars import as_int, optional_float
from mgqe.checks.waiting import reads_wait
from mgqe.nn.context.hints import hints_of


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator per row, for tables that are too large for Adam's two moments per element.

    For a row that has a gradient g: a <- a + mean(g^2), row <- row - lr * g / (sqrt(a) + eps), as in fbgemm's
    "exact row-wise Adagrad". Rows of a sparse gradient alone are read or written. A dense gradient, and any parameter
    that is not a matrix (codebooks), makes it Adagrad with one accumulator per element. bfloat16 parameters are rounded
    up or down at random, with probabilities that make the mean exact: rounded to nearest, a step of less than 0.2% of
    an entry would do nothing, however often it came.

    Beside the row itself this takes 4 bytes per row.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; 0.01 to 0.2 are usual.
        codebook_lr: of the codebooks that follow rows (VQ's, of which the layers tell it in their training passes).
            Adagrad's first steps move every number by the rate, whatever its gradient; at the rows' rate that scatters
            centroids. Default: lr / 100.
        eps: keeps a division by zero away.
        weight_decay: times the row is added to its gradient (of rows that have one).
        stochastic_rounding: of bfloat16 parameters; False rounds to nearest.
        seed: of the rounding. On other devices than the CPU torch's global generator is used.

    Raises:
        ValueError: a number that is out of range. TypeError: a complex parameter.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.05,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        stochastic_rounding: bool = True,
        seed: int = 0,
        codebook_lr: float | None = None,
    ) -> None:
        rates = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "codebook_lr": codebook_lr}
        numbers = {name: optional_float(name, value) for name, value in rates.items()}
        for name, value in numbers.items():
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number of 0 or more, got {value}")
        self._generator = torch.Generator("cpu").manual_seed(as_int("seed", seed))
        super().__init__(params, {**numbers, "stochastic_rounding": stochastic_rounding})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; parameters without a gradient are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.is_complex():
                    raise TypeError("RowwiseAdagrad does not take complex parameters")
                if parameter.grad.is_sparse and parameter.dim() == 2:
                    self._sparse_step(parameter, parameter.grad, group)
                else:  # of codebooks, which are few numbers, also where their gradient is sparse
                    self._dense_step(parameter, dense_gradient(parameter), group)
        return loss

    def _sparse_step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.sparse_dim() != 1:
            raise ValueError(
                f"RowwiseAdagrad takes gradients that are sparse over rows alone, got {grad.sparse_dim()} sparse axes "
                f"for a parameter of shape {tuple(parameter.shape)}"
            )
        rows, values = grad._indices()[0], grad._values()
        if rows.numel() == 0:
            return
        sums = self._accumulator(parameter, (parameter.shape[0],))
        self._renew(parameter, sums)
        numbers = group["lr"], group["eps"], group["weight_decay"]
        if ops.adagrad_rows(parameter, sums, rows, values, *numbers, self._noise(parameter, group)):
            return
        rows, values = summed_rows(grad)
        current = parameter.detach().index_select(0, rows).to(values.dtype)
        if group["weight_decay"]:
            values = values.add(current, alpha=group["weight_decay"])
        total = sums.index_select(0, rows).add_(values.square().mean(1))
        sums.index_copy_(0, rows, total)
        scale = total.sqrt().add_(group["eps"]).reciprocal_().mul_(-group["lr"]).masked_fill_(total == 0, 0.0)
        current.add_(values.mul_(scale.unsqueeze(1)))
        parameter.index_copy_(0, rows, self._rounded(current, parameter.dtype, group))

    def _dense_step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        sums = self._accumulator(parameter, tuple(parameter.shape))
        self._renew(parameter, sums)
        rate = group["lr"]
        if hints_of(parameter).follows_rows:
            rate = rate / 100 if group["codebook_lr"] is None else group["codebook_lr"]
        numbers = rate, group["eps"], group["weight_decay"]
        if ops.adagrad_all(parameter, sums, grad, *numbers, self._noise(parameter, group)):
            return
        kind = torch.promote_types(parameter.dtype, torch.float32)
        grad, current = grad.to(kind), parameter.detach().to(kind)
        if group["weight_decay"]:
            grad = grad.add(current, alpha=group["weight_decay"])
        sums.add_(grad.square())
        scale = sums.sqrt().add_(group["eps"]).reciprocal_().mul_(-rate).masked_fill_(sums == 0, 0.0)
        moved = current.addcmul(grad, scale.to(kind))
        parameter.copy_(self._rounded(moved, parameter.dtype, group))

    def _accumulator(self, parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
        state = self.state[parameter]
        if "sum" not in state:
            state["sum"] = torch.zeros(shape, dtype=torch.float32, device=parameter.device)
        sums: Tensor = state["sum"]
        if tuple(sums.shape) != shape:
            raise RuntimeError(
                f"a parameter of shape {tuple(parameter.shape)} had {'sparse' if sums.dim() < len(shape) else 'dense'} "
                "gradients before and has the other kind now: keep sparse= as it was, or make a new optimiser"
            )
        return sums

    def _renew(self, parameter: Tensor, sums: Tensor) -> None:
        """Start the sums of rows that a cache gave to other ids since the last step with their mean."""
        hints = hints_of(parameter)
        if self.state[parameter].get("renewed", 0) != hints.renewals:
            used = sums[hints.first_renewed :]
            used = used[used > 0]
            if used.numel():
                sums[hints.first_renewed :] = used.mean()
            self.state[parameter]["renewed"] = hints.renewals

    def _noise(self, parameter: Tensor, group: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
        """What draws the numbers that round a parameter at random; None where it is rounded to nearest."""
        if parameter.dtype != torch.bfloat16 or not group["stochastic_rounding"]:
            return None
        return partial(noise_of, generator=self._generator if parameter.device.type == "cpu" else None)

    def _rounded(self, values: Tensor, dtype: torch.dtype, group: dict[str, Any]) -> Tensor:
        if dtype == torch.bfloat16 and group["stochastic_rounding"]:
            return round_at_random(values, self._generator if values.device.type == "cpu" else None)
        return values.to(dtype)

    def state_dict(self) -> dict[str, Any]:
        """As other optimisers', with where the random rounding has got to."""
        return {**super().state_dict(), "rounding": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accumulators stay float32, whatever the parameters are: torch's own loading would make them bfloat16."""
        super().load_state_dict(state_dict)
        order = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(order, parameters, strict=True):
            if "sum" in (saved := state_dict["state"].get(number, {})):
                self.state[parameter]["sum"] = saved["sum"].detach().to(parameter.device, torch.float32, copy=True)
        if isinstance(rounding := state_dict.get("rounding"), Tensor):
            self._generator.set_state(rounding.cpu())

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state["_generator"] = None
        return {**state, "_rounding": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rounding = state.pop("_rounding", None)
        super().__setstate__(state)
        if rounding is not None or getattr(self, "_generator", None) is None:
            self._generator = torch.Generator("cpu")
            if rounding is not None:
                self._generator.set_state(rounding)


def summed_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient that is sparse over rows -> its distinct rows int64 (u,) and their sums (u, d), float32 or float64."""
    rows, values = grad._indices()[0], grad._values()
    kind = torch.promote_types(values.dtype, torch.float32)
    if grad.is_coalesced():
        return rows, values.to(kind, copy=True)
    if reads_wait(rows.device):
        return _summed_in_place(rows, values.to(kind))
    distinct, index, _ = ops.unique(rows, grad.shape[0])
    if distinct.numel() == rows.numel():
        return rows, values.to(kind, copy=True)
    if kind == torch.float32 and values.device.type == "cpu":
        shape = (1, distinct.shape[0], values.shape[1])
        return distinct, ops.scatter(values.float(), index.unsqueeze(-1), None, *shape)[0].squeeze(0)
    sums = torch.zeros(distinct.shape[0], values.shape[1], dtype=kind, device=values.device)
    return distinct, sums.index_add_(0, index, values.to(kind))


def _summed_in_place(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`summed_rows` without a wait for the device: as many rows as there were, some more than once.

    Those have the same sum each time, so that it does not matter which of them is written last.
    """
    distinct, index, counts = ops.unique_padded(rows)
    sums = torch.zeros_like(values).index_add_(0, index, values)
    return distinct, torch.where((counts > 0).unsqueeze(1), sums, sums[:1])


def round_at_random(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """float32 -> bfloat16, up or down with probabilities that make the mean exact.

    A bfloat16 is the upper half of a float32: a random number below 2^16 is added to the bits, and the lower half cut
    off. Infinity and NaN stay what they are.
    """
    bits = values.contiguous().view(torch.int32)
    rounded = ((bits + noise_of(bits, generator)) & -65536).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def noise_of(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers below 2^16 in a tensor's shape, int32."""
    return torch.randint(0, 1 << 16, like.shape, dtype=torch.int32, device=like.device, generator=generator)


def dense_gradient(parameter: Tensor) -> Tensor:
    """A parameter's gradient, whole; the layers' sparse ones of codebooks have all rows, in their order."""
    grad = parameter.grad
    assert grad is not None
    if grad.is_sparse and grad.is_coalesced() and grad._values().shape == parameter.shape:
        return grad._values()
    return grad.to_dense()
