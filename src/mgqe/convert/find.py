"""The embedding tables of a model: where they are, what shares them, what is tied to their weight."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from mgqe.convert.wrappers import wrapped

Place = tuple[nn.Module, str]


@dataclass(frozen=True)
class FoundTable:
    """One parameter that embedding modules look rows up from.

    Attributes:
        module: the embedding; the first of them where several modules share the parameter.
        paths: where it is in the model, the first one first.
        places: (parent, name) of each path.
        others: further embedding modules that share its parameter.
        ties: (module, parameter's name, path) of other modules that hold the same parameter.
    """

    module: nn.Module
    paths: tuple[str, ...]
    places: tuple[Place, ...]
    others: tuple[nn.Module, ...] = ()
    ties: tuple[tuple[nn.Module, str, str], ...] = ()

    @property
    def path(self) -> str:
        """The first path."""
        return self.paths[0]


def places(model: nn.Module) -> Iterator[tuple[str, nn.Module, Place | None]]:
    """Every path of the model, shared modules at each of theirs: (path, module, (parent, name)).

    The place of a module in a wrapper (torch.compile, DataParallel and their kind) is that of the wrapper: the forward
    pass of a compiled module goes on calling the module that was compiled, whatever takes its place inside.
    """

    def walk(
        module: nn.Module, path: str, place: Place | None, above: set[int]
    ) -> Iterator[tuple[str, nn.Module, Place | None]]:
        yield path, module, place
        if id(module) in above:
            return
        for name, child in module._modules.items():
            if child is not None:
                below = f"{path}.{name}" if path else name
                yield from walk(
                    child, below, place if name == wrapped(module) else (module, name), above | {id(module)}
                )

    return walk(model, "", None, set())


def is_embedding(module: nn.Module) -> bool:
    """Whether torch would call it an embedding."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def find_tables(model: nn.Module) -> list[FoundTable]:
    """The tables of all nn.Embedding and nn.EmbeddingBag modules, in the order of the model.

    Raises:
        ValueError: the model itself is the embedding, which cannot be replaced in place.
    """
    found: dict[int, dict[nn.Module, list[tuple[str, Place]]]] = {}
    for path, module, place in places(model):
        if is_embedding(module):
            if place is None:
                kind = "EmbeddingBag" if isinstance(module, nn.EmbeddingBag) else "Embedding"
                raise ValueError(
                    f"the model itself is an {type(module).__name__} and cannot be swapped in place: use "
                    f"mgqe.MGQ{kind}.from_pretrained(model.weight, counts=...) instead"
                )
            weight = module._parameters.get("weight")
            key = id(module) if weight is None else id(weight)
            found.setdefault(key, {}).setdefault(module, []).append((path, place))
    tables = []
    for modules in found.values():
        first, *others = modules
        where = [at for entries in modules.values() for at in entries]
        tables.append(
            FoundTable(
                first,
                tuple(path for path, _ in where),
                tuple(place for _, place in where),
                tuple(others),
                tuple(_ties(model, first, modules)),
            )
        )
    return tables


def _ties(
    model: nn.Module, module: nn.Module, embeddings: Collection[nn.Module]
) -> Iterator[tuple[nn.Module, str, str]]:
    weight = module._parameters.get("weight")
    if weight is None:
        return
    for path, other in model.named_modules():
        if other not in embeddings:
            for name, parameter in other._parameters.items():
                if parameter is weight:
                    yield other, name, path
