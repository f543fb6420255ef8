"""What a program waits for on a GPU, counted on the CPU: numbers read, shapes that depend on values, copies."""

from __future__ import annotations

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that, on a GPU, stop the program until the device has caught up.
WAITING = {
    "_local_scalar_dense": "a number is read: .item(), int(), bool(), float()",
    "nonzero": "the shape depends on values",
    "masked_select": "the shape depends on values",
    "_unique2": "the shape depends on values",
    "unique_dim": "the shape depends on values",
    "unique_consecutive": "the shape depends on values",
    "bincount": "the shape depends on values",
    "repeat_interleave": "the shape depends on values",
    "_coalesce": "the shape depends on values",
    "equal": "a truth value is read",
    "allclose": "a truth value is read",
    "lift_fresh": "numbers of Python are copied to the device: torch.tensor([...]), an index that is a list",
    "embedding_renorm_": "torch's kernel finds the distinct ids first",
}

# Methods that read all of a tensor, and are no operator where it is on the CPU.
READING = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.cpu}


class _Reads(TorchFunctionMode):
    """Counts methods that read a tensor's numbers without an operator of torch."""

    def __init__(self, waits: Waits) -> None:
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in READING and not self.waits.is_free(args[0]):
            self.waits.counts[function.__name__] += 1
        return function(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Counts the operators within that would wait, by name; ``index`` and ``index_put_`` where a mask chooses.

    Attributes:
        counts: of the operators that would wait.
        with_the_cpu: of those that read or make a tensor on the CPU, where the layer is elsewhere.
    """

    def __init__(self, *on_the_cpu: torch.Tensor) -> None:
        """``on_the_cpu``: tensors that stay there where the others move to a GPU, so that reading them is no wait."""
        super().__init__()
        self.free = {tensor.untyped_storage().data_ptr() for tensor in on_the_cpu}
        self.counts: Counter[str] = Counter()
        self.with_the_cpu: Counter[str] = Counter()
        self._reads = _Reads(self)

    def is_free(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is one of those that stay on the CPU, so that nothing waits for it."""
        return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in self.free

    def __enter__(self):
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self._reads.__exit__(*raised)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense" and self.is_free(args[0]):
            pass
        elif name in WAITING:
            self.counts[name] += 1
        elif name in ("index", "index_put_", "index_put"):
            chosen = [each for each in args[1] if each is not None]
            if any(each.dtype in (torch.bool, torch.uint8) for each in chosen):
                self.counts[f"{name} with a mask"] += 1
        made = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.with_the_cpu[name] += 1
        return made
