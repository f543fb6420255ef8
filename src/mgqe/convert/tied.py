"""Tied weights: a module whose parameter was an embedding's weight reads the quantised layer's `weight` instead.

The module gets a subclass of its own class, with a property in place of the parameter. The rows stay registered under
the parameter's name, so that the keys of state_dict stay and the rows are one parameter, as in any tied model. Modules
get other methods in the same way, by :func:`mix_in`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

# In the module's __dict__: name -> layer. As a submodule, the layer would be in the state_dict twice.
TIED_LAYERS = "_mgqe_tied"


class Tied:
    """Base of the classes that :func:`tied_class` makes: copying and unpickling an instance makes its class again."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        get_state = getattr(self, "__getstate__", None)  # every object has one from Python 3.11 on
        state = self.__dict__.copy() if get_state is None else get_state()
        return _empty, (untied_class(type(self)), tied_names(type(self)), mixins(type(self))), state


def tie(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Make ``module.<name>`` read ``layer.weight``.

    Args:
        module: any module that reads its parameter as an attribute.
        name: of the parameter.
        layer: an embedding with a ``weight``.
    """
    layers = {**ties_of(module), name: layer}
    module.__dict__[TIED_LAYERS] = layers
    cls = type(module)
    module.__class__ = tied_class(untied_class(cls), tuple(sorted(layers)), mixins(cls))


def mix_in(module: nn.Module, mixin: type) -> None:
    """Give a module the methods of a class before those of its own. Its class keeps its name."""
    cls = type(module)
    if not issubclass(cls, mixin):
        module.__class__ = tied_class(untied_class(cls), tied_names(cls), (*mixins(cls), mixin))


def ties_of(module: nn.Module) -> dict[str, nn.Module]:
    """The tied names of a module, and the layer of each."""
    return dict(module.__dict__.get(TIED_LAYERS, {}))


def untied_class(cls: type) -> type:
    """The class before anything was tied or mixed in: the user's own."""
    return cls.__dict__.get("_mgqe_base", cls) if issubclass(cls, Tied) else cls


def tied_names(cls: type) -> tuple[str, ...]:
    """The names that a tied class reads from layers; none for other classes."""
    names: tuple[str, ...] = cls.__dict__.get("_mgqe_names", ())
    return names


def mixins(cls: type) -> tuple[type, ...]:
    """The classes that :func:`mix_in` put before a class."""
    added: tuple[type, ...] = cls.__dict__.get("_mgqe_mixins", ())
    return added


@functools.cache
def tied_class(base: type, names: tuple[str, ...], added: tuple[type, ...] = ()) -> type:
    """A subclass of ``base`` with properties for ``names`` and the methods of the classes ``added``; the same class for
    the same arguments."""
    body: dict[str, Any] = {name: property(_reader(name)) for name in names}
    body.update(_mgqe_base=base, _mgqe_names=names, _mgqe_mixins=added, __module__=base.__module__)
    body.update(__doc__=base.__doc__, __qualname__=base.__qualname__ if added else f"Tied{base.__name__}")
    return type(base.__name__ if added else f"Tied{base.__name__}", (Tied, *added, base), body)


def _reader(name: str) -> Callable[[Any], Any]:
    def read(self: Any) -> Any:
        return self.__dict__[TIED_LAYERS][name].weight

    return read


def _empty(base: type, names: tuple[str, ...], added: tuple[type, ...] = ()) -> Any:
    """An instance without state, for copy and pickle."""
    cls: Any = tied_class(base, names, added)
    return cls.__new__(cls)
