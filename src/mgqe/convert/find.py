"""The embedding tables of a model: where they are, which modules share them, what is tied to their weight."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from mgqe.convert.wrappers import wrapped_name

Slot = tuple[nn.Module, str]  # a parent module, and the name of a child in it


@dataclass(frozen=True)
class ModelTable:
    """One parameter in which embedding modules look rows up.

    Attributes:
        module: the embedding module; the first one where several share the parameter.
        paths: all paths of the modules, in the order of the model.
        slots: (parent, name) of each path.
        others: further embedding modules that share the parameter.
        ties: (module, parameter's name, path) of modules that are no embeddings and hold the parameter.
    """

    module: nn.Module
    paths: tuple[str, ...]
    slots: tuple[Slot, ...]
    others: tuple[nn.Module, ...] = ()
    ties: tuple[tuple[nn.Module, str, str], ...] = ()

    @property
    def path(self) -> str:
        """The first path."""
        return self.paths[0]


def walk_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Slot | None]]:
    """Every path of the model, also each path of a shared module: (path, module, (parent, name)); None for the model.

    The slot of a module in a wrapper (torch.compile, DataParallel and their kind) is the slot of the wrapper: a
    compiled module goes on calling the module that was compiled, whatever replaces it inside the wrapper.
    """

    def walk(
        module: nn.Module, path: str, slot: Slot | None, ancestors: set[int]
    ) -> Iterator[tuple[str, nn.Module, Slot | None]]:
        yield path, module, slot
        if id(module) in ancestors:
            return
        for name, child in module._modules.items():
            if child is not None:
                child_path = f"{path}.{name}" if path else name
                child_slot = slot if name == wrapped_name(module) else (module, name)
                yield from walk(child, child_path, child_slot, ancestors | {id(module)})

    return walk(model, "", None, set())


def is_embedding(module: nn.Module) -> bool:
    """Whether a module is one of torch's embeddings."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def find_tables(model: nn.Module) -> list[ModelTable]:
    """The tables of all nn.Embedding and nn.EmbeddingBag modules, in the order of the model.

    Raises:
        ValueError: the model itself is the embedding, which cannot be replaced in place.
    """
    by_weight: dict[int, dict[nn.Module, list[tuple[str, Slot]]]] = {}
    for path, module, slot in walk_modules(model):
        if is_embedding(module):
            if slot is None:
                kind = "EmbeddingBag" if isinstance(module, nn.EmbeddingBag) else "Embedding"
                raise ValueError(
                    f"the model itself is an {type(module).__name__} and cannot be swapped in place: use "
                    f"mgqe.MGQ{kind}.from_pretrained(model.weight, counts=...) instead"
                )
            weight = module._parameters.get("weight")
            key = id(module) if weight is None else id(weight)
            by_weight.setdefault(key, {}).setdefault(module, []).append((path, slot))
    tables = []
    for modules in by_weight.values():
        first, *others = modules
        locations = [location for entries in modules.values() for location in entries]
        tables.append(
            ModelTable(
                first,
                tuple(path for path, _ in locations),
                tuple(slot for _, slot in locations),
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
