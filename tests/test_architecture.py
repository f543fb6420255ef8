"""The packages import one way, down, no import goes in a circle, and what is private to a package stays in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import mgqe

SOURCE = Path(mgqe.__file__).parent
# From the ground up. A package may import those on floors below, itself, and nothing else of ours.
FLOORS = (
    ["checks"],
    ["ops", "files"],
    ["codec"],
    ["table", "ids"],
    ["nn", "vectors", "collection"],
    ["baselines", "torchrec", "server"],
    ["convert"],
    ["hub", "integrations"],
    [""],
    ["recsys"],
    ["cli"],
)


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    names = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, anywhere in it: for types and inside functions as well."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            targets |= {name if name in known else str(node.module) for name in whole}
    return {name for name in targets if name in known}


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    return next(number for number, packages in enumerate(FLOORS) if package(module) in packages)


def arrows() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def test_no_package_imports_one_above_it():
    upward = [
        f"{name} imports {target}"
        for name, targets in arrows().items()
        for target in targets
        if package(target) != package(name) and floor(target) >= floor(name)
    ]
    assert not upward


def require_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_no_import_goes_in_a_circle():
    require_no_circle(arrows())


def test_no_folder_imports_one_that_imports_it():
    known, folders = modules(), {}
    for name, targets in arrows().items():
        folder = known[name].parent
        folders.setdefault(str(folder), set()).update(str(known[target].parent) for target in targets)
    require_no_circle({folder: targets - {folder} for folder, targets in folders.items()})


def test_the_top_of_the_package_holds_packages_alone():
    assert [path.name for path in SOURCE.glob("*.py")] == ["__init__.py"]


# Private names of torch, torchrec and os that have no public counterpart.
FOREIGN = {
    "_parameters": "torch.nn.Module: a parameter is replaced, or removed, without going through __setattr__",
    "_buffers": "torch.nn.Module: likewise",
    "_modules": "torch.nn.Module: a submodule is replaced under a name that attribute access does not reach",
    "_non_persistent_buffers_set": "torch.nn.Module: nothing else says which buffers state_dict leaves out",
    "_replace": "typing.NamedTuple: the method that its documentation names",
    "_version": "torch.Tensor: counts the changes in place, by which a layer sees an optimiser's step",
    "_init_weights": "transformers: how a model starts the rows of new tokens",
    "_values": "torch.sparse: the public values() needs a coalesced tensor, which costs a sort",
    "_indices": "torch.sparse: likewise",
    "_C": "torch: the number of the backward pass that runs is public nowhere else",
    "_current_graph_task_id": "torch._C: likewise",
    "_active_ddp_module": "DistributedDataParallel: nothing else says which wrapper runs the forward pass",
    "_device": "torchrec: a sharded collection without rows of its own says its device nowhere else",
    "_exit": "os: ends a forked process without running the parent's exit handlers",
}
# Reaches across packages that are still to go, "file: name". May only shrink.
KNOWN: set[str] = set()


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_own(value: ast.expr) -> bool:
    """Whether this is self, cls or super()."""
    if isinstance(value, ast.Call):
        value = value.func
    return isinstance(value, ast.Name) and value.id in ("self", "cls", "super")


def private_definitions(tree: ast.Module) -> Iterator[str]:
    """Names of functions, classes, variables and attributes of self or cls that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr


def private_reads(tree: ast.Module) -> Iterator[str]:
    """Private names that a file reads from other objects, as attributes or with getattr and the like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not is_own(node.value) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            match node.args:  # getattr(target, "_name"), hasattr, setattr, delattr
                case [target, ast.Constant(str(name)), *_] if not is_own(target) and is_private(name):
                    yield name


def private_imports(module: str, tree: ast.Module) -> Iterator[str]:
    """Private names and modules of other packages of ours that a file imports."""
    for node in ast.walk(tree):
        targets = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        for target in targets:
            if target.split(".")[0] == "mgqe" and package(target) != package(module):
                yield from filter(is_private, target.split("."))


def test_no_package_reaches_into_anothers_private_parts():
    known = modules()
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in known.items()}
    defined: dict[str, set[str]] = {}
    for name, tree in trees.items():
        defined.setdefault(package(name), set()).update(private_definitions(tree))
    reaches = {
        f"{known[name].relative_to(SOURCE).as_posix()}: {target}"
        for name, tree in trees.items()
        for target in (
            *private_imports(name, tree),
            *({*private_reads(tree)} - defined[package(name)] - FOREIGN.keys()),
        )
    }
    assert sorted(reaches - KNOWN) == []
    assert sorted(KNOWN - reaches) == [], "these are gone: take them out of KNOWN"
