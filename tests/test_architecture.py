"""The packages import one way, down, and no import goes in a circle: the drawing in docs/architecture.md is true."""

from __future__ import annotations

import ast
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
    ["nn"],
    ["baselines", "torchrec"],
    ["convert"],
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
