"""Weights tied to an embedding's: modules whose parameter was the embedding's read the layer's `weight` instead.

The module gets a subclass of its own class with a property in the parameter's place. It keeps the rows registered
under the parameter's name, as a tied model does: state_dict keys stay, and the rows are one parameter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

HELD = "_mgqe_tied"  # in the module's __dict__: name -> layer; not a submodule, which would double its state


class Tied:
    """What the classes of tied modules have in common."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        own = getattr(self, "__getstate__", None)  # every object has one from Python 3.11 on
        state = self.__dict__.copy() if own is None else own()
        return _empty, (untied_class(type(self)), tied_names(type(self))), state


def tie(module: nn.Module, name: str, layer: nn.Module) -> None:
    """From now on ``module.<name>`` is ``layer.weight``.

    Args:
        module: any module that reads its parameter as an attribute.
        name: the parameter's.
        layer: an embedding with a ``weight``.
    """
    held = module.__dict__.get(HELD, {})
    module.__dict__[HELD] = {**held, name: layer}
    module.__class__ = tied_class(untied_class(type(module)), tuple(sorted({*held, name})))


def ties_of(module: nn.Module) -> dict[str, nn.Module]:
    """Names of a module that are tied, and the layers that they are tied to."""
    return dict(module.__dict__.get(HELD, {}))


def untied_class(cls: type) -> type:
    """The class that the user wrote."""
    return cls.__dict__.get("_mgqe_base", cls) if issubclass(cls, Tied) else cls


def tied_names(cls: type) -> tuple[str, ...]:
    """The names that a tied class reads from layers."""
    names: tuple[str, ...] = cls.__dict__.get("_mgqe_names", ())
    return names


@functools.cache
def tied_class(base: type, names: tuple[str, ...]) -> type:
    """``base`` with properties for ``names``; the same class every time."""
    body: dict[str, Any] = {name: property(_reader(name)) for name in names}
    body.update(_mgqe_base=base, _mgqe_names=names, __module__=base.__module__, __doc__=base.__doc__)
    return type(f"Tied{base.__name__}", (Tied, base), body)


def _reader(name: str) -> Callable[[Any], Any]:
    def read(self: Any) -> Any:
        return self.__dict__[HELD][name].weight

    return read


def _empty(base: type, names: tuple[str, ...]) -> Any:
    """For copy and pickle."""
    cls: Any = tied_class(base, names)
    return cls.__new__(cls)
