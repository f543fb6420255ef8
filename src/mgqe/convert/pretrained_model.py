"""Converted models of transformers: their own save_pretrained, load_state_dict and resize_token_embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mgqe.convert.pretrained_state import packed, table_layers, unpacked
from mgqe.convert.tied import mix_in, ties_of, untied_class
from mgqe.nn.compact import CompactEmbedding
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.compact import CompactTable


def mix_into(model: nn.Module, pretrained: type) -> list[nn.Module]:
    """Give the transformers models in a converted model what is in :class:`ConvertedPretrained`, and return them.

    Args:
        pretrained: transformers' PreTrainedModel.
    """
    models = [each for each in model.modules() if isinstance(each, pretrained) and table_layers(each)]
    for each in models:
        mix_in(each, ConvertedPretrained)
    return models


class ConvertedPretrained:
    """What a transformers model does in another way while it has quantised or frozen tables."""

    # No annotations of attributes here: transformers evaluates those of its models.

    @classmethod
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model's own class."""
        return untied_class(cls).from_pretrained(*args, **kwargs)  # type: ignore[attr-defined]

    def save_pretrained(
        self: Any, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers', with the tables in the weights' file; see :mod:`mgqe.convert.pretrained_state`.

        A model whose tables still train is written for ``load_state_dict`` alone, as the Trainer resumes.

        Raises:
            ValueError: the model is also quantised by another method.
        """
        save = super().save_pretrained  # type: ignore[misc]
        if not table_layers(self) or getattr(self, "_hf_peft_config_loaded", False):  # adapters leave tables out
            return save(save_directory, is_main_process, state_dict, *args, **kwargs)
        config = self.config
        before = getattr(config, "quantization_config", None)
        if before is not None:
            raise ValueError(
                "the model is also quantised by another method, and config.json has a place for one: write it with "
                "mgqe.save_model(model, folder)"
            )
        state, config.quantization_config = packed(self, self.state_dict() if state_dict is None else state_dict)
        try:
            return save(save_directory, is_main_process, state, *args, **kwargs)
        finally:
            del config.quantization_config

    def load_state_dict(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As nn.Module's; takes the state that :meth:`save_pretrained` writes, too."""
        return super().load_state_dict(unpacked(self, state_dict), *args, **kwargs)  # type: ignore[misc]

    def tie_weights(self: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: tied modules read the table, whatever happens to it."""
        if not table_layers(self):
            super().tie_weights(*args, **kwargs)  # type: ignore[misc]

    def resize_token_embeddings(
        self: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> Any:
        """As transformers', of a frozen table: the new tokens are appended to it, with its own centroids.

        Raises:
            ValueError: a table that still trains, or a smaller number of tokens.
        """
        layer = self.get_input_embeddings()
        if not isinstance(layer, (CompactEmbedding, QuantizedEmbedding)):
            return super().resize_token_embeddings(  # type: ignore[misc]
                new_num_tokens, pad_to_multiple_of, mean_resizing
            )
        num_tokens = _padded(new_num_tokens, pad_to_multiple_of, layer.num_embeddings)
        if num_tokens == layer.num_embeddings:
            return layer
        table = layer.table if isinstance(layer, CompactEmbedding) else None
        if not isinstance(table, CompactTable) or num_tokens < layer.num_embeddings:
            raise ValueError(
                f"resize_token_embeddings({num_tokens}) of a table of {layer.num_embeddings} tokens that "
                f"{'still trains' if table is None else 'is frozen, which can only grow'}: resize the model first, and "
                "then call mgqe.compress_" + ("; or mgqe.freeze_ it first" if table is None else "")
            )
        rows = _new_rows(self, table, num_tokens - len(table), mean_resizing)
        head = self.get_output_embeddings()
        if head is not None and layer not in ties_of(head).values() and head is not layer:
            self.set_output_embeddings(self._get_resized_lm_head(head, num_tokens, mean_resizing=mean_resizing))
        table.append(rows)
        if head is not None and layer in ties_of(head).values():
            _grow_tied(head, num_tokens)
            self.set_output_embeddings(head)  # BERT and its kind share the head's bias
        self.config.get_text_config().vocab_size = num_tokens
        self.vocab_size = num_tokens
        return layer


def _padded(num_tokens: int | None, multiple: int | None, present: int) -> int:
    num_tokens = present if num_tokens is None else num_tokens
    return num_tokens if multiple is None else -(-num_tokens // multiple) * multiple


def _new_rows(model: Any, table: CompactTable, count: int, from_mean: bool) -> Tensor:
    """Rows (count, d): the mean of all rows, as transformers starts them, or what the model starts embeddings with."""
    if from_mean:
        return table.to_dense().mean(0).expand(count, -1).contiguous()
    fresh = nn.Embedding(count, table.embedding_dim, device=table.device)
    model._init_weights(fresh)
    return fresh.weight.detach().float()


def _grow_tied(head: Any, num_tokens: int) -> None:
    """An output layer that reads the table: its size, and a bias of zeros for the new tokens."""
    head.out_features = num_tokens
    bias = getattr(head, "bias", None)
    if bias is not None:
        grown = torch.cat([bias.detach(), bias.new_zeros(num_tokens - len(bias))])
        head.bias = nn.Parameter(grown, bias.requires_grad)
