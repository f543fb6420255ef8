"""load_model: a saved folder into the user's own model class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from mgqe.convert.fit import Fit, compare
from mgqe.convert.folder import class_name
from mgqe.convert.manifest import Manifest
from mgqe.convert.read import read_model
from mgqe.convert.tied import tie
from mgqe.convert.wrappers import CLASSES, class_of, layers_of

MAX_PROBLEM = 500  # characters

Model = TypeVar("Model", bound=nn.Module)


def load_model(model: Model, folder: str | os.PathLike[str], *, verify: bool | None = None) -> Model:
    """Put a saved model's tables and weights into an instance of its class, in place, and return it in eval mode.

    The folder may be saved over meanwhile: this loads the one model or the other, whole.

    Args:
        model: made as the saved one was, embeddings as its class makes them (or compressed, or frozen): whatever is at
            the tables' paths is replaced. It may be wrapped (torch.compile, DataParallel and their kind), whether the
            saved one was or not, and it may be on the meta device: what is saved then goes to the CPU.
        folder: what :func:`mgqe.save_model` wrote. Tables are mapped into memory, and read when first looked up.
        verify: compare every file with its checksums: as in :func:`mgqe.load`, None for small files alone.

    Raises:
        TypeError: a class and no instance, or an instance of another class.
        ValueError: the model has no embedding at a table's path, or one of another size or kind; weights that it lacks,
        has too many of, or in other shapes. All are listed by their paths, and the model is as it was.
        ArtifactError: (a ValueError) a file is damaged, cut short, missing or of another save, or the manifest
        contradicts itself; the message names it, and the model is as it was.
        FileNotFoundError: there is no such folder.
    """
    given: object = model
    if not isinstance(given, nn.Module):
        name = given.__name__ if isinstance(given, type) else type(given).__name__
        raise TypeError(f"expected a model, got {name}: pass an instance, load_model({name}(...), folder)")
    target = Path(folder)
    with torch.device("cpu"):  # whatever the default is: a model may be made and loaded under torch.device("meta")
        saved = read_model(target, verify)
        _check_class(model, saved.manifest, target)
        fit = compare(model, saved)
        if fit.problems:
            raise ValueError(
                f"{target} does not fit this {class_name(model)}:\n  " + "\n  ".join(map(_shortened, fit.problems))
            )
        _put_tables(model, fit)
        _materialise(model)
        model.load_state_dict(fit.dense, strict=False)  # compared above; the tables' keys are not among them
    return model.eval()


def _shortened(problem: str) -> str:
    """A folder may hold names of any length."""
    return problem if len(problem) <= MAX_PROBLEM else f"{problem[:MAX_PROBLEM]} ..."


def _check_class(model: nn.Module, manifest: Manifest, folder: Path) -> None:
    """Raises TypeError. Folders of version 1 may have the class of a wrapper."""
    known = {class_of(layer) for layer in layers_of(model)}
    if manifest.class_name not in {*known, *CLASSES}:
        raise TypeError(
            f"{folder} holds a model of class {manifest.class_name}, not {class_name(model)}: pass an instance of "
            f"{manifest.class_name}"
        )


def _put_tables(model: nn.Module, fit: Fit) -> None:
    for path, table in fit.tables.items():
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = table
    for module, name, table in fit.ties:
        module._parameters.pop(name, None)
        tie(module, name, table)


def _materialise(model: nn.Module) -> None:
    """Give parameters and buffers that are on the meta device elements on the CPU; those that are shared stay so."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the old ones, so that no other gets their id
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.is_meta:
                    _, new = made.setdefault(id(tensor), (tensor, _on_cpu(tensor)))
                    held[name] = new  # type: ignore[assignment]


def _on_cpu(tensor: Tensor) -> Tensor:
    new = torch.empty_like(tensor, device="cpu")
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, tensor.requires_grad)
    new.__dict__.update(tensor.__dict__)  # what authors note on their parameters
    return new
