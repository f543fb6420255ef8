"""RawRows: the full-precision rows that a quantised layer trains, under the name that nn.Embedding gives them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgqe.checks.ids import as_int64, check_ids, no_values
from mgqe.nn.context.ddp import is_sharded
from mgqe.nn.rows.store import RowStore

SWEEP_ROWS = 65_536  # rows worked on at a time in a sweep over the vocabulary


class RawRows(nn.Module):
    """Rows held as the parameter ``weight``, (N, d) unless there is a store, so that checkpoints of full tables load.

    A subclass has a property of that name, which gives the vectors that look-ups give; the rows themselves are
    :attr:`raw_weight`.

    Attributes:
        zero_padding: ``padding_idx`` looks up as zeros whatever its row holds. False: as its row, quantised like the
            others; it gets no gradient either way.
        store: where rows come from that are not a parameter of N rows; None for those that are.
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    sparse: bool
    zero_padding: bool = True
    store: RowStore | None

    @property
    def raw_weight(self) -> nn.Parameter:
        """The rows that the optimiser moves, (N, d) unless ``rows=`` says otherwise; ``weight`` in state_dict()."""
        rows = self._parameters["weight"]
        if rows is None:
            raise RuntimeError("this layer has no rows: its parameter `weight` was set to None")
        return rows

    @property
    def vector_dtype(self) -> torch.dtype:
        """Of what look-ups give: the rows', unless these are kept in fewer bits."""
        return self.raw_weight.dtype

    def __setattr__(self, name: str, value: Any) -> None:
        """As nn.Module; also sees what shards a model's parameters, which cannot be done to these rows."""
        if name == "weight" and isinstance(value, Tensor) and (type(value) is Tensor or is_sharded(value)):
            raise RuntimeError(
                f"the rows of a {type(self).__name__} of {self.num_embeddings} x {self.embedding_dim} cannot be "
                "replaced by a sharded or plain tensor, as fully_shard and FullyShardedDataParallel do: codebooks "
                "start from and follow whole rows on every process. Use DistributedDataParallel, or mgqe.torchrec for "
                "tables that one process cannot hold, or freeze_ the model first; the model is half wrapped now, so "
                "make it again. To replace the rows themselves assign an nn.Parameter"
            )
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module, which refuses names that are properties."""
        if name == "weight":
            self._parameters[name] = param
        else:
            super().register_parameter(name, param)

    def _read_rows(self, ids: Tensor) -> Tensor:
        """Rows as a forward pass reads them: ``max_norm`` renormalises them first, in place, as in nn.Embedding."""
        if self.store is not None:
            return self.store.read(self.raw_weight, ids)
        return F.embedding(ids, self.raw_weight.detach(), None, self.max_norm, self.norm_type)

    def _train_rows(self, ids: Tensor) -> Tensor:
        """The same of distinct ids, in the vectors' dtype, with the gradient to the parameter."""
        if self.store is not None:
            return self.store.train_rows(self.raw_weight, ids, self.sparse).to(self.vector_dtype)
        padding, norm = self.padding_idx, self.max_norm
        rows = F.embedding(ids, self.raw_weight, padding, norm, self.norm_type, sparse=self.sparse)
        return rows.to(self.vector_dtype)

    def _check_rows(self, largest: float = math.inf) -> None:
        """Raises ValueError naming the first row that is not finite, or holds numbers of more than ``largest``."""
        for start in range(0, len(self.raw_weight), SWEEP_ROWS):
            values = self.raw_weight.detach()[start : start + SWEEP_ROWS]
            finite = (values.isfinite() & (values.abs() <= largest)).all(1)
            zero = self.zero_row if self.store is None else None
            if zero is not None and start <= zero < start + SWEEP_ROWS:
                finite[zero - start] = True  # looks up as zeros, whatever its row holds
            if not bool(finite.all()):
                row = start + int((~finite).nonzero()[0])
                where = "the embedding weight" if self.store is None else "raw_weight"
                if bool(self.raw_weight.detach()[row].isfinite().all()):
                    raise ValueError(
                        f"row {row} of {where} holds numbers beyond {largest:g}, whose products with keys overflow "
                        'float32: scale the rows down, or use quantizer="vq"'
                    )
                raise ValueError(
                    f"row {row} of {where} holds NaN or infinity and cannot be quantised ({type(self).__name__} of "
                    f"{self.num_embeddings} x {self.embedding_dim}): the training diverged; lower the learning rate or "
                    "go back to an earlier checkpoint"
                )

    def _int64(self, ids: Tensor) -> Tensor:
        """Ids as int64; TypeError where they are on the meta device and the rows are not."""
        rows = as_int64(ids)
        if rows.is_meta and not self.raw_weight.is_meta:
            raise no_values()
        return rows

    def _rows(self, ids: Tensor) -> Tensor:
        """Ids as int64 that are safe to index with. On other devices than the CPU the look-up itself refuses."""
        rows = self._int64(ids)
        if rows.device.type != "cpu" or torch.compiler.is_compiling():
            return rows
        return check_ids(rows, self.num_embeddings)

    @property
    def zero_row(self) -> int | None:
        """The id that looks up as zeros."""
        return self.padding_idx if self.zero_padding else None

    def _is_padding(self, ids: Tensor) -> Tensor | None:
        """Which ids train nothing."""
        return None if self.padding_idx is None else ids.eq(self.padding_idx)

    def _zeroed(self, ids: Tensor, vectors: Tensor) -> Tensor:
        """Vectors (..., d) of ids (...), those of the zero row set to zero."""
        zero = self.zero_row
        return vectors if zero is None else vectors.masked_fill(ids.eq(zero).unsqueeze(-1), 0.0)
