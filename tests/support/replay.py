"""A step that is replayed, as a CUDA graph is: the operators of one step again, with other ids in the same tensor.

A replay runs nothing of Python. So it gives another batch's step if no shape, no branch and no number depends on the
ids or on how many steps there were, and if what lives from step to step stays where it is.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """Keeps the operators within, with their very tensors; :meth:`replay` runs them again into these."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, made in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and not old.is_sparse and not is_same_memory(old, new):
                    assert old.shape == new.shape, f"{function} made another shape"
                    old.copy_(new)


def is_same_memory(one, other):
    """As of views, and of what is changed in place."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
