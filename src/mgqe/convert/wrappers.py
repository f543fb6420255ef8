"""Modules that wrap another one, as torch.compile, DataParallel and FSDP do, add a name to every path below them.

Saved models have plain paths, without these names, so that a model is the same whether it is wrapped or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn

from mgqe.convert.tied import untied_class

ALWAYS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # names that no model's author gives
MAYBE = "module"  # also a name that an author may give
CLASSES = ("OptimizedModule", "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def wrapped(module: nn.Module) -> str | None:
    """The name under which a wrapper holds the module that it wraps; None for a module that is no wrapper.

    A wrapper is a module with a child of a name in ``ALWAYS``, or with nothing but a child named "module".
    """
    for name in ALWAYS:
        if module._modules.get(name) is not None:
            return name
    alone = list(module._modules) == [MAYBE] and not module._parameters and not module._buffers
    return MAYBE if alone and module._modules[MAYBE] is not None else None


def class_of(module: nn.Module) -> str:
    """The name of a module's class as its author gave it, without the module it is in, which differs between script and
    package; and not of the classes that tied weights or torch's fully_shard make of it."""
    cls = untied_class(type(module))
    first, *others = cls.__bases__
    return (others[0] if others and first.__name__ == "FSDPModule" else cls).__qualname__


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """A model, then what it wraps, and so on; the last one is no wrapper."""
    seen: set[nn.Module] = set()
    while model not in seen:
        seen.add(model)
        yield model
        name = wrapped(model)
        if name is not None:
            child = model._modules[name]
            assert child is not None  # wrapped() says so
            model = child


def plain_paths(model: nn.Module) -> dict[str, str]:
    """Every path of a model -> the path without wrappers; a wrapper has that of the module that it wraps."""
    modules = dict(model.named_modules(remove_duplicate=False))
    plain = {"": ""}
    for path in modules:
        if path:
            parent, _, name = path.rpartition(".")
            above = plain[parent]
            plain[path] = above if name == wrapped(modules[parent]) else f"{above}.{name}".lstrip(".")
    return plain


def plain_key(key: str, plain: Mapping[str, str]) -> str:
    """A key of ``state_dict``, or the path of a parameter, without wrappers.

    Args:
        plain: of :func:`plain_paths`.
    """
    owner = key.rpartition(".")[0]
    while owner not in plain:  # state_dict hooks may have taken a wrapper's name out, or put others in
        owner = owner.rpartition(".")[0]
    rest = key[len(owner) :].lstrip(".")
    return ".".join(part for part in (plain[owner], rest) if part)


def translation(tables: Iterable[str], plain: Mapping[str, str]) -> Callable[[str], str]:
    """How names in a folder become plain paths of a model.

    Folders of version 1 have the names of wrappers in their paths. Of several ways to read them the first is taken
    under which the model has all the tables.

    Args:
        tables: paths of the saved tables.
        plain: of the model, by :func:`plain_paths`.
    """
    paths, known = list(tables), set(plain.values())
    ways: list[Callable[[str], str]] = [
        lambda name: name,
        lambda name: plain_key(name, plain),
        *(lambda name, n=n: _without(name, n) for n in range(3)),
        lambda name: _without(name, name.count(".") + 1, anywhere=True),
    ]
    return next((way for way in ways if all(way(path) in known for path in paths)), ways[0])


def _without(name: str, most: int, anywhere: bool = False) -> str:
    """A path without the names that wrappers always give, and without up to ``most`` times "module" at its start."""
    parts = [part for part in name.split(".") if part not in ALWAYS]
    if anywhere:
        return ".".join(part for part in parts if part != MAYBE)
    while most and parts[:1] == [MAYBE]:
        parts, most = parts[1:], most - 1
    return ".".join(parts)
