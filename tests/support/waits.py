"""What a program waits for on a GPU, counted on the CPU: numbers read, shapes that depend on values, copies."""

from __future__ import annotations

from collections import Counter

import torch
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
    "lift_fresh": "numbers of Python are copied to the device: torch.tensor([...]), an index that is a list",
    "embedding_renorm_": "torch's kernel finds the distinct ids first",
}


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

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense" and args[0].untyped_storage().data_ptr() in self.free:
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
