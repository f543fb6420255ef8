"""The paths of a model without wrappers: torch.compile, DataParallel and FSDP add a name to every path below them.

Saved models have plain paths, without these names, so that a folder is the same whether the model was wrapped or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn

from mgqe.convert.tied import untied_class

WRAPPER_NAMES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # which nothing else uses
AMBIGUOUS_NAME = "module"  # which authors of models may use as well
WRAPPER_CLASSES = ("OptimizedModule", "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def wrapped_name(module: nn.Module) -> str | None:
    """The name under which a wrapper holds the module that it wraps; None for a module that is no wrapper.

    A wrapper is a module with a child of a name in ``WRAPPER_NAMES``, or with nothing but a child named "module".
    """
    for name in WRAPPER_NAMES:
        if module._modules.get(name) is not None:
            return name
    is_only_child = list(module._modules) == [AMBIGUOUS_NAME] and not module._parameters and not module._buffers
    return AMBIGUOUS_NAME if is_only_child and module._modules[AMBIGUOUS_NAME] is not None else None


def class_name_of(module: nn.Module) -> str:
    """The name of a module's class as its author gave it: not of the subclass that ties or fully_shard make of it.

    The Python module of the class is left out, since it differs between a script and a package.
    """
    cls = untied_class(type(module))
    first, *others = cls.__bases__
    return (others[0] if others and first.__name__ == "FSDPModule" else cls).__qualname__


def wrapper_chain(model: nn.Module) -> Iterator[nn.Module]:
    """A model, then the module that it wraps, and so on; the last one is no wrapper."""
    seen: set[nn.Module] = set()
    while model not in seen:
        seen.add(model)
        yield model
        name = wrapped_name(model)
        if name is not None:
            child = model._modules[name]
            assert child is not None  # wrapped_name() says so
            model = child


def plain_paths(model: nn.Module) -> dict[str, str]:
    """Every path of a model -> the path without wrappers; a wrapper has the path of the module that it wraps."""
    modules = dict(model.named_modules(remove_duplicate=False))
    plain = {"": ""}
    for path in modules:
        if path:
            parent, _, name = path.rpartition(".")
            is_wrapped = name == wrapped_name(modules[parent])
            plain[path] = plain[parent] if is_wrapped else f"{plain[parent]}.{name}".lstrip(".")
    return plain


def plain_key(key: str, plain: Mapping[str, str]) -> str:
    """A key of ``state_dict``, or the path of a parameter, without wrappers.

    Args:
        plain: of :func:`plain_paths`.
    """
    owner = key.rpartition(".")[0]
    while owner not in plain:  # state_dict hooks may have removed a wrapper's name, or added others
        owner = owner.rpartition(".")[0]
    rest = key[len(owner) :].lstrip(".")
    return ".".join(name for name in (plain[owner], rest) if name)


def translation(tables: Iterable[str], plain: Mapping[str, str]) -> Callable[[str], str]:
    """A function from the names in a folder to plain paths of a model.

    Folders of version 1 have the names of wrappers in their paths. Of several ways to read them, this is the first
    that finds all tables in the model.

    Args:
        tables: paths of the saved tables.
        plain: of the model, by :func:`plain_paths`.
    """
    paths, known = list(tables), set(plain.values())
    candidates: list[Callable[[str], str]] = [
        lambda name: name,
        lambda name: plain_key(name, plain),
        *(lambda name, n=n: _strip_wrappers(name, n) for n in range(3)),
        lambda name: _strip_wrappers(name, name.count(".") + 1, anywhere=True),
    ]
    return next((each for each in candidates if all(each(path) in known for path in paths)), candidates[0])


def _strip_wrappers(name: str, most: int, anywhere: bool = False) -> str:
    """A path without the names that only wrappers give, and without up to ``most`` times "module" at its start."""
    names = [each for each in name.split(".") if each not in WRAPPER_NAMES]
    if anywhere:
        return ".".join(each for each in names if each != AMBIGUOUS_NAME)
    while most and names[:1] == [AMBIGUOUS_NAME]:
        names, most = names[1:], most - 1
    return ".".join(names)
