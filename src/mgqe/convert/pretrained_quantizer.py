"""mgqe as a quantisation method of transformers: importing this module lets from_pretrained read converted models.

transformers makes the model without weights. Its embeddings are replaced by :class:`_Packed`, whose parameter takes the
bytes of a table from the weights' file. When all weights are read, the frozen tables take their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mgqe.checks.names import errors_about
from mgqe.convert.find import Slot
from mgqe.convert.manifest import Tie, reading
from mgqe.convert.pretrained_model import mix_into
from mgqe.convert.pretrained_state import METHOD, PretrainedTable, read_entries, table_of
from mgqe.convert.tied import tie
from mgqe.files.container import ArtifactError


class _Packed(nn.Module):
    """A table's bytes on their way from the file.

    Args:
        table: as config.json has it.
        replaced: the embedding that the model made in its place.
    """

    def __init__(self, table: PretrainedTable, replaced: nn.Module) -> None:
        super().__init__()
        weight: Any = replaced.weight
        self.table, self.dtype = table, weight.dtype
        self.num_embeddings, self.embedding_dim = weight.shape
        content = torch.empty(table.nbytes, dtype=torch.uint8, device=weight.device)
        self.weight = nn.Parameter(content, requires_grad=False)

    def unpacked(self) -> nn.Module:
        """The frozen module. ArtifactError: damaged bytes, or a table of another size."""
        frozen = self.table.module(table_of(self.weight.detach()), self.dtype)
        if (frozen.num_embeddings, frozen.embedding_dim) != (self.num_embeddings, self.embedding_dim):
            raise ArtifactError(
                f"a table of {frozen.num_embeddings} x {frozen.embedding_dim}, where the model of config.json has "
                f"{self.num_embeddings} x {self.embedding_dim}"
            )
        return frozen.to(self.weight.device)


@register_quantization_config(METHOD)
class MGQEConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The ``quantization_config`` of config.json: the tables, their ties, and whether the model was frozen."""

    def __init__(self, **settings: Any) -> None:
        self.quant_method = METHOD
        self.settings = settings

    def to_dict(self) -> dict[str, Any]:
        """As in config.json."""
        return {**self.settings, "quant_method": METHOD}


@register_quantizer(METHOD)
class MGQEQuantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers asks of a quantisation method."""

    requires_calibration = True  # a model is converted by compress_, not by from_pretrained

    def __init__(self, quantization_config: MGQEConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._tables: list[PretrainedTable] = []
        self._ties: list[Tie] = []

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        settings = self.quantization_config.settings
        if settings.get("trains"):
            raise ValueError(_still_trains(model))
        with reading(Path(str(model.config.name_or_path)) / "config.json"):
            self._tables, self._ties = read_entries(settings)
        for table in self._tables:
            paths = [path for path in (_path_in(model, each) for each in table.paths) if path is not None]
            if not paths:
                raise ValueError(
                    f"{type(model).__name__} has no embedding at {table.paths[0]}, where a table was saved"
                )
            module = _Packed(table, model.get_submodule(paths[0]))
            for path in paths:
                parent, _, name = path.rpartition(".")
                model.get_submodule(parent)._modules[name] = module
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        frozen: dict[_Packed, nn.Module] = {}
        for module in list(model.modules()):
            for name, child in module._modules.items():
                if isinstance(child, _Packed):
                    if child not in frozen:
                        with errors_about(child.table.paths[0]):
                            frozen[child] = child.unpacked()
                    module._modules[name] = frozen[child]
        ties = {**dict(self._saved_ties(model, frozen)), **dict(_made_ties(model, frozen))}
        for (head, name), table in ties.items():
            if name not in head._parameters:
                kind = type(head).__name__
                raise ArtifactError(f"config.json ties {name!r} of a {kind}, which has no such parameter")
            head._parameters.pop(name)
            tie(head, name, table)
            _trim_bias(head, table)
        self.remove_quantization_config(model)  # the tables say it themselves
        mix_into(model, PreTrainedModel)
        return model

    def _saved_ties(self, model: Any, frozen: dict[_Packed, nn.Module]) -> Iterator[tuple[Slot, nn.Module]]:
        """The ties that config.json names, of modules that this class has."""
        by_path = {each.table.paths[0]: module for each, module in frozen.items()}
        for each in self._ties:
            if (path := _path_in(model, each.path)) is not None:
                yield (model.get_submodule(path), each.name), by_path[each.table]

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Whether save_pretrained works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the rest of the model trains."""
        return True


def _made_ties(model: nn.Module, frozen: dict[_Packed, nn.Module]) -> Iterator[tuple[Slot, nn.Module]]:
    """The ties that transformers made: a base was saved, and its output layer is new."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            for packed, table in frozen.items():
                if parameter is packed.weight:
                    yield (module, name), table


def _trim_bias(head: Any, table: Any) -> None:
    """transformers made the bias of a tied output layer as long as the tensor of bytes."""
    bias = getattr(head, "bias", None)
    if bias is not None:
        bias.data = bias.data[: table.num_embeddings].clone()


def _path_in(model: Any, path: str) -> str | None:
    """A saved path in a model that may be the base of the saved one, or have it as its base; None where it is not."""
    prefix = f"{model.base_model_prefix}."
    for each in (path, path.removeprefix(prefix), prefix + path):
        try:
            model.get_submodule(each)
        except AttributeError:
            continue
        return each
    return None


def _still_trains(model: Any) -> str:
    name = type(model).__name__
    return (
        f"{model.config.name_or_path} holds a {name} whose tables still trained when it was saved, and from_pretrained "
        f"cannot make those. To train on, make the model in the same way ({name}(config), mgqe.compress_ with the same "
        "arguments) and load model.safetensors into it with load_state_dict, as the Trainer does. For a model that "
        "from_pretrained reads, call mgqe.freeze_(model) before save_pretrained"
    )
