"""A device that is not there, in place of a GPU: its tensors have numbers, which the CPU holds.

What a GPU would refuse is refused: an operator that takes tensors of both (but for a single number of the CPU), and
``numpy()``. What it would wait for or copy is an operator, so that :class:`waits.Waits` sees it. Operators are torch's
own ones; kernels of mgqe do not run there. Importing this registers the device with torch for the whole process.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "made_up"
_setup_privateuseone_for_python_backend(NAME)
THERE = torch.device(NAME, 0)
CPU = torch.device("cpu")
MOVING = {"_to_copy", "copy_"}


class There(torch.Tensor):
    """A tensor on the device; ``held``: the same on the CPU."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=THERE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with _Operators():
            return function(*args, **(kwargs or {}))

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError(f"can't convert {NAME} device type tensor to numpy")


class _Makers(TorchFunctionMode):
    """What makes tensors of Python's numbers, without an operator that says where."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(THERE)
        device = kwargs.get("device")
        if function in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == NAME:
            return function(*args, **{**kwargs, "device": CPU}).to(THERE)
        return function(*args, **kwargs)


class _Operators(TorchDispatchMode):
    """Runs operators of the device's tensors with what the CPU holds, and refuses what mixes both."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        is_there = any(isinstance(each, There) for each in given)
        if is_there and name not in MOVING and any(each.dim() and not isinstance(each, There) for each in given):
            where = ", ".join(f"{tuple(each.shape)} on {each.device.type}" for each in given)
            raise RuntimeError(f"{function} takes tensors of two devices: {where}")
        if (asked := kwargs.get("device")) is not None:
            is_there, kwargs["device"] = torch.device(asked).type == NAME, CPU
        held = {id(each.held): each for each in given if isinstance(each, There)}
        mine = {id(each) for each in given}

        def on_cpu(value):
            return value.held if isinstance(value, There) else value

        def back(value):
            if not isinstance(value, torch.Tensor) or id(value) in mine:
                return value
            return held.get(id(value)) if id(value) in held else There(value) if is_there else value

        return tree_map(back, function(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs)))


@contextmanager
def made_up_device():
    """Within, tensors can be made on THERE and moved to it."""
    with ExitStack() as stack:
        stack.enter_context(_Makers())
        stack.enter_context(_Operators())
        yield THERE
