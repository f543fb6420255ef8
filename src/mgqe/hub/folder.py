"""save_pretrained and from_pretrained: what mgqe makes in a folder with a card, in the form that each thing has."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mgqe.collection import Collection
from mgqe.collection.folder import is_collection
from mgqe.convert.folder import save_model
from mgqe.convert.load import load_model
from mgqe.convert.manifest import MANIFEST, decode_manifest
from mgqe.convert.pretrained_model import ConvertedPretrained
from mgqe.convert.pretrained_state import METHOD
from mgqe.convert.read import manifest_bytes
from mgqe.files.container import ArtifactError
from mgqe.files.destination import refuse_other_files
from mgqe.hub.card import CARD, About, card, check_about
from mgqe.hub.remote import download
from mgqe.nn.compact import CompactEmbedding
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.base import FrozenTable
from mgqe.table.io import load, save

if TYPE_CHECKING:
    from typing_extensions import Unpack

TABLE = "table.safetensors"
CONFIG = "config.json"


def save_pretrained(thing: Any, folder: str | os.PathLike[str], **about: Unpack[About]) -> int:
    """Write a table, a collection or a frozen model to a folder, with a card, and return the bytes of its files.

    A table is the file ``table.safetensors``; a collection is what :meth:`mgqe.Collection.save` writes; a model what
    :func:`mgqe.save_model` writes, or, of transformers, its own ``save_pretrained``. The card is ``README.md``, as hubs
    show it; an older one is replaced.

    Args:
        thing: a frozen table, a CompactEmbedding, a :class:`mgqe.Collection`, or a model after :func:`mgqe.freeze_`.
        folder: made if it does not exist; otherwise empty, or one of the same kind.
        about: what the card says besides sizes: ``name``, ``description``, ``budget``, ``metric``, ``figures`` (a
            dict), ``license``, ``tags``.

    Raises:
        TypeError: something else, or an unknown entry for the card. ValueError: a layer or model that is not frozen.
        FileExistsError: the folder holds other files. OSError: a file cannot be written.

    Example:
        >>> import torch, mgqe
        >>> table = mgqe.compress_table(torch.randn(1000, 16), "20%")
        >>> nbytes = mgqe.save_pretrained(mgqe.Collection(table), "items", budget="20%")
        >>> mgqe.from_pretrained("items").lookup(17).shape
        torch.Size([16])
    """
    return write(thing, Path(folder), Path(folder).resolve().name, os.fspath(folder), about)


def write(thing: Any, folder: Path, name: str, source: str, about: About) -> int:
    """:func:`save_pretrained` with a card that is headed by ``name`` and opens ``source``."""
    check_about(about)
    thing = thing.table if isinstance(thing, CompactEmbedding) else thing
    _refuse_unfrozen(thing)
    quoted = json.dumps(source)
    tables: dict[str, FrozenTable]
    others: dict[str, int] = {}
    if isinstance(thing, FrozenTable):
        folder.mkdir(parents=True, exist_ok=True)
        refuse_other_files(folder, lambda name: name.startswith((TABLE, CARD, ".")))
        nbytes = save(thing, folder / TABLE)
        what, tables = "A table", {"vectors": thing}
        opening = f"table = mgqe.from_pretrained({quoted})\nvectors = table.lookup([0, 1, 2])"
    elif isinstance(thing, Collection):
        nbytes = thing.save(folder)
        what, tables = "A collection", {"vectors": thing.table}
        others = {} if thing.ids is None else {"ids": thing.ids.nbytes}
        opening = f"items = mgqe.from_pretrained({quoted}){_asked(thing)}"
    elif isinstance(thing, nn.Module):
        nbytes = _write_model(thing, folder)
        kind = type(thing).__name__
        what, tables = f"A {kind} with frozen embeddings", _tables(thing)
        others = {"other weights": sum(parameter.nbytes for parameter in thing.parameters())}
        if isinstance(thing, ConvertedPretrained):
            opening = f"model = mgqe.from_pretrained({quoted}){_by_transformers(kind, source)}"
        else:
            opening = f"model = mgqe.from_pretrained({quoted}, model={kind}(...))  # an instance of the model's class"
    else:
        raise TypeError(f"expected a frozen table, a Collection or a model, got {type(thing).__name__}")
    text = card(name, what, f"import mgqe\n\n{opening}", tables, others, about)
    (folder / CARD).write_text(text, encoding="utf-8")
    return nbytes + len(text.encode())


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Any:
    """Open what :func:`save_pretrained` wrote or :func:`push_to_hub` sent.

    Args:
        name: of a folder, or of a repository on Hugging Face's hub, OWNER/NAME, which is downloaded once (extra
            ``mgqe[hub]``).
        model: of a folder that :func:`mgqe.save_model` wrote: an instance of the model's class, which is loaded in
            place.
        revision: a branch, tag or commit of the repository.
        token: of the hub; None for the one that ``hf auth login`` keeps.
        cache_dir: where downloads are kept.
        local_files_only: take a repository from earlier downloads alone.

    Returns:
        the frozen table, the :class:`mgqe.Collection`, or the model in eval mode.

    Raises:
        FileNotFoundError: neither a folder nor a repository's name. ConnectionError: the hub cannot be reached, and
            nothing was downloaded before. ImportError: a package is missing; the message says which to install.
        ArtifactError: (a ValueError) a folder of something else, or damaged files. ValueError: a model's folder
            without ``model``. Others as :func:`mgqe.load_model`.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = download(os.fspath(name), revision, token, cache_dir, local_files_only)
    if (folder / MANIFEST).is_file():
        if model is None:
            cls = decode_manifest(manifest_bytes(folder), folder / MANIFEST).class_name
            raise ValueError(
                f"{os.fspath(name)} holds a model of class {cls}: give an instance of it, "
                f"from_pretrained({os.fspath(name)!r}, model={cls}(...))"
            )
        return load_model(model, folder)
    if model is not None:
        raise ValueError(f"{os.fspath(name)} holds no folder of mgqe.save_model: leave model= out")
    if is_collection(folder):
        return Collection.load(folder)
    if (folder / TABLE).is_file():
        return load(folder / TABLE)
    architecture = _architecture(folder)
    if architecture is None:
        raise ArtifactError(
            f"{os.fspath(name)} holds nothing that mgqe.save_pretrained writes: it has no {TABLE}, no collection, no "
            f"{MANIFEST}, and no {CONFIG} of a converted transformers model"
        )
    return _transformers_class(architecture).from_pretrained(folder)


def _asked(items: Collection) -> str:
    some = [items.ids.ids([row])[0] if items.ids is not None else row for row in range(min(2, len(items)))]
    ids = [one.item() if hasattr(one, "item") else one for one in some]
    return f"\nvectors = items.lookup({json.dumps(ids)})" + (
        f"\nhits = items.neighbours({json.dumps(ids[0])}, 10)" if ids else ""
    )


def _by_transformers(architecture: str, source: str) -> str:
    return (
        "\n\n# The same by transformers, which refuses the model without the second import:\n"
        "import transformers\nimport mgqe.integrations.transformers\n\n"
        f"model = transformers.{architecture}.from_pretrained({json.dumps(source)})"
    )


def _write_model(model: nn.Module, folder: Path) -> int:
    if not isinstance(model, ConvertedPretrained):
        return save_model(model, folder)
    model.save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != CARD)


def _tables(model: nn.Module) -> dict[str, FrozenTable]:
    return {path: module.table for path, module in model.named_modules() if isinstance(module, CompactEmbedding)}


def _refuse_unfrozen(thing: Any) -> None:
    if isinstance(thing, QuantizedEmbedding):
        raise ValueError(f"a {type(thing).__name__} trains: give what its freeze() returns")
    if isinstance(thing, nn.Module):
        training = [path for path, module in thing.named_modules() if isinstance(module, QuantizedEmbedding)]
        if training:
            raise ValueError(f"{', '.join(training)}: not frozen yet, call mgqe.freeze_(model) first")
        if not _tables(thing):
            raise ValueError(
                f"{type(thing).__name__} has no frozen table in it: call mgqe.compress_ and mgqe.freeze_ first"
            )


def _architecture(folder: Path) -> str | None:
    """The class of a converted transformers model; None where the folder holds none."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        quantization = config.get("quantization_config") or {}
        return str(config["architectures"][0]) if quantization.get("quant_method") == METHOD else None
    except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise ArtifactError(f"{path}: not the configuration of a transformers model: {error}") from error


def _transformers_class(architecture: str) -> Any:
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        raise ImportError(f"{architecture} is a model of transformers: pip install 'transformers>=5'") from error
    import_module("mgqe.convert.pretrained_quantizer")
    cls = getattr(transformers, architecture, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ArtifactError(
            f"transformers {transformers.__version__} has no model {architecture}: import "
            "mgqe.integrations.transformers, and call from_pretrained of the model's own class"
        )
    return cls
