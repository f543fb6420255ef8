"""load_model: read a saved folder into a model of the user's own class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from mgqe.convert.fit import Fit, compare
from mgqe.convert.folder import model_class_name
from mgqe.convert.manifest import Manifest
from mgqe.convert.pretrained import adopt
from mgqe.convert.read import read_model
from mgqe.convert.tied import tie
from mgqe.convert.wrappers import WRAPPER_CLASSES, class_name_of, wrapper_chain

MAX_PROBLEM = 500  # characters

Model = TypeVar("Model", bound=nn.Module)


def load_model(model: Model, folder: str | os.PathLike[str], *, verify: bool | None = None) -> Model:
    """Load a saved model's tables and weights into an instance of its class, in place, and return it in eval mode.

    Another process may save to the folder meanwhile: the result is the older model or the newer one, never a mixture.

    Args:
        model: an instance made like the saved one. Its embeddings may be as its class makes them, compressed or frozen:
            the modules at the tables' paths are replaced. The model may be wrapped (torch.compile, DataParallel and
            their kind), whether or not the saved one was. It may be on the meta device, and is then loaded to the CPU.
        folder: where :func:`mgqe.save_model` wrote. Tables are mapped into memory and read when first looked up.
        verify: whether to compare every file with its checksums; None, as in :func:`mgqe.load`, for small files alone.

    Raises:
        TypeError: a class in place of an instance, or an instance of another class.
        ValueError: the model has no embedding at a table's path, or one of another size or kind; weights are missing in
            the model or in the folder, or have other shapes. All are listed by their paths. The model is as it was.
        ArtifactError: (a ValueError) a file is damaged, cut short, missing or of another save, or the manifest
            contradicts itself. The message names the file. The model is as it was.
        FileNotFoundError: there is no such folder.

    Example:
        >>> import torch, mgqe
        >>> def make_model():
        ...     return torch.nn.Sequential(torch.nn.Embedding(1000, 16), torch.nn.Linear(16, 1))
        >>> model = make_model()
        >>> report = mgqe.compress_(model, init="from_weight")
        >>> tables = mgqe.freeze_(model)
        >>> nbytes = mgqe.save_model(model, "model")
        >>> loaded = mgqe.load_model(make_model(), "model")
        >>> torch.equal(loaded(torch.tensor([3, 17])), model(torch.tensor([3, 17])))
        True
    """
    instance: object = model
    if not isinstance(instance, nn.Module):
        name = instance.__name__ if isinstance(instance, type) else type(instance).__name__
        raise TypeError(f"expected a model, got {name}: pass an instance, load_model({name}(...), folder)")
    target = Path(folder)
    with torch.device("cpu"):  # the default may be torch.device("meta"), to make the model without memory
        saved = read_model(target, verify)
        _check_class(model, saved.manifest, target)
        fit = compare(model, saved)
        if fit.problems:
            raise ValueError(
                f"{target} does not fit this {model_class_name(model)}:\n  "
                + "\n  ".join(map(_shortened, fit.problems))
            )
        _insert_tables(model, fit)
        adopt(model)
        _materialise(model)
        model.load_state_dict(fit.dense, strict=False)  # the tables' keys are missing; compare() checked the others
    return model.eval()


def _shortened(problem: str) -> str:
    """The beginning of a line, since a folder may hold names of any length."""
    return problem if len(problem) <= MAX_PROBLEM else f"{problem[:MAX_PROBLEM]} ..."


def _check_class(model: nn.Module, manifest: Manifest, folder: Path) -> None:
    """Raises TypeError for an instance of another class. Folders of version 1 may name the class of a wrapper."""
    known = {class_name_of(layer) for layer in wrapper_chain(model)}
    if manifest.class_name not in {*known, *WRAPPER_CLASSES}:
        raise TypeError(
            f"{folder} holds a model of class {manifest.class_name}, not {model_class_name(model)}: "
            f"pass an instance of {manifest.class_name}"
        )


def _insert_tables(model: nn.Module, fit: Fit) -> None:
    for path, table in fit.tables.items():
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = table
    for module, name, table in fit.ties:
        module._parameters.pop(name, None)
        tie(module, name, table)


def _materialise(model: nn.Module) -> None:
    """Replace parameters and buffers on the meta device by tensors on the CPU; shared ones stay shared."""
    replaced: dict[int, tuple[Tensor, Tensor]] = {}  # keeps the old tensors, so that their ids stay unique
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta:
                    _, new = replaced.setdefault(id(tensor), (tensor, _on_cpu(tensor)))
                    tensors[name] = new  # type: ignore[assignment]


def _on_cpu(tensor: Tensor) -> Tensor:
    new = torch.empty_like(tensor, device="cpu")
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, tensor.requires_grad)
    new.__dict__.update(tensor.__dict__)  # attributes that authors set on their parameters
    return new
