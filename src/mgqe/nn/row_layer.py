"""RowLayer: a layer whose rows are a parameter of its own, and how a look-up gets from ids to vectors."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgqe import ops
from mgqe.checks.devices import memory_for_rows
from mgqe.checks.ids import as_int64, check_ids, no_values
from mgqe.checks.waiting import reads_wait
from mgqe.nn.codebook_layer import Batch, CodebookLayer
from mgqe.nn.context.ddp import is_sharded, recomputing
from mgqe.nn.context.decorators import in_full_precision, outside_graphs
from mgqe.nn.context.one_graph import in_one_graph
from mgqe.nn.late_ids import LateIds
from mgqe.nn.quantizers.autograd import RepeatVectors, mask_rows
from mgqe.nn.rows import RowStore


class RowLayer(LateIds, CodebookLayer):
    """A layer that holds its rows; torchrec holds those of the other kind, ``QuantizedTable``.

    Attributes:
        store: where rows are while they train.
        row_storage: ``rows=``, or the class of its configuration.
        num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse: nn.Embedding's.
        distinct_on_gpu: on a GPU, find the distinct ids of a training pass and quantise each once. That takes a sort;
            without it an id is quantised as often as it occurs, with the same results but for the order of sums.
        zero_padding: ``padding_idx`` looks up as zeros whatever its row holds. False: as its row, quantised like the
            others; it gets no gradient either way.
    """

    distinct_on_gpu: bool = False
    zero_padding: bool = True
    store: RowStore
    row_storage: str
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    sparse: bool

    # ---- the rows as a parameter ---------------------------------------------------------------------------

    @property
    def raw_weight(self) -> nn.Parameter:
        """The rows that the optimiser moves, (N, d) unless ``rows=`` says otherwise; ``weight`` in state_dict()."""
        rows = self._parameters["weight"]
        if rows is None:
            raise RuntimeError("this layer has no rows: its parameter `weight` was set to None")
        return rows

    @property
    def vector_dtype(self) -> torch.dtype:
        """Of what look-ups return: the rows' dtype, or the codebooks' where rows are kept in fewer bits."""
        if self.row_storage != "bfloat16":
            return self.raw_weight.dtype
        return next(self.quantizer.parameters()).dtype

    def __setattr__(self, name: str, value: Any) -> None:
        """As nn.Module; also sees what shards a model's parameters, which cannot be done to these rows."""
        if name == "weight" and isinstance(value, Tensor) and (type(value) is Tensor or is_sharded(value)):
            raise RuntimeError(
                f"the rows of a {self._sizes} cannot be replaced by a sharded or plain tensor, as fully_shard and "
                "FullyShardedDataParallel do: codebooks start from and follow whole rows on every process. Use "
                "DistributedDataParallel, or mgqe.torchrec for tables that one process cannot hold, or freeze_ the "
                "model first; the model is half wrapped now, so make it again. To replace the rows themselves assign "
                "an nn.Parameter"
            )
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module, which refuses names that are properties."""
        if name == "weight":
            self._parameters[name] = param
        else:
            super().register_parameter(name, param)

    # ---- ids -----------------------------------------------------------------------------------------------

    def _int64(self, ids: Tensor) -> Tensor:
        """Ids as int64, on a GPU with a later error for those out of range; see :class:`IdGuard`.

        TypeError where they are on the meta device and the rows are not.
        """
        ids = as_int64(ids)
        if ids.is_meta and not self.raw_weight.is_meta:
            raise no_values()
        return self.id_guard.admit(ids, self.num_embeddings)

    def _checked_ids(self, ids: Tensor) -> Tensor:
        """Ids as int64 that are safe to index with. In graphs the look-up itself refuses."""
        ids = self._int64(ids)
        if ids.device.type != "cpu" or reads_wait(ids.device) or torch.compiler.is_compiling():
            return ids
        return check_ids(ids, self.num_embeddings)

    @property
    def zero_row(self) -> int | None:
        """The id that looks up as zeros."""
        return self.padding_idx if self.zero_padding else None

    def _is_padding(self, ids: Tensor) -> Tensor | None:
        """Mask of the ids that train nothing."""
        return None if self.padding_idx is None else ids.eq(self.padding_idx)

    # ---- from ids to vectors -------------------------------------------------------------------------------

    @property
    def _reads_parameter(self) -> bool:
        """Whether vectors are rows of the parameter as it is, and nn.Embedding's own functions do.

        Not where these would wait for a GPU: their sparse gradient leaves padding out by a mask.
        """
        if not self.store.is_full or self.quantizing or self.raw_weight.dtype != self.vector_dtype:
            return False
        masks = self.sparse and self.padding_idx is not None and not torch.compiler.is_compiling()
        return not (masks and reads_wait(self.raw_weight.device))

    def _distinct_vectors(self, flat: Tensor) -> tuple[Tensor, Batch]:
        """Vectors (u, d) of the distinct ids among flat ids (n,), zeros for padding."""
        if self.quantizing and not self.store.codes_are_fixed:
            return self._quantized_vectors(flat)
        return self._row_vectors(flat)

    @outside_graphs
    @in_full_precision
    def _row_vectors(self, flat: Tensor) -> tuple[Tensor, Batch]:
        batch = self._static_batch(flat) if reads_wait(flat.device) else Batch(*ops.unique(flat, self.num_embeddings))
        vectors = self.store.vectors(self._rows_of(batch.ids, left_out=self.padding_idx))
        padding = self._is_padding(batch.ids)
        return vectors if padding is None else mask_rows(vectors, padding, self.zero_padding), batch

    @in_full_precision
    def _quantized_vectors(self, flat: Tensor) -> tuple[Tensor, Batch]:
        batch = self._batch_by_tier(flat)
        rows, counts, padding = self._rows_of(batch.ids), batch.counts, self._is_padding(batch.ids)
        if padding is not None:
            counts = padding.logical_not().long() if counts is None else counts.masked_fill(padding, 0)
            rows = rows if self.zero_padding else mask_rows(rows, padding, False)
        gathered = self.store.gathers(self.raw_weight)
        vectors, loss = self.quantizer.quantize(rows, batch.groups, counts, gathered)
        if not self._tracks and (final := self.store.final_codes_mask(batch.ids)) is not None:
            vectors = torch.where(final.unsqueeze(-1), rows, vectors)  # as frozen: no code is chosen again
        if loss is not None and in_one_graph():
            self.losses.in_graph.append(loss)
        elif loss is not None:
            self._keep_loss(loss)
        if padding is not None and self.zero_padding:
            vectors = mask_rows(vectors, padding, True)
        return vectors, batch

    def _repeated(self, vectors: Tensor, batch: Batch) -> Tensor:
        """The vectors (u, d) of a batch's distinct ids -> those of all its ids (n, d)."""
        if batch.inverse is None:
            return vectors.to(self.vector_dtype)
        by_tier = not isinstance(batch.groups, Tensor) and len(batch.groups) > 0
        if not (by_tier and self.quantizer.is_fused and self.store.gathers(self.raw_weight)):
            # torch's own function, as for the rest of the pass
            return F.embedding(batch.inverse, vectors, scale_grad_by_freq=self.scale_grad_by_freq)
        counts = batch.counts if self.scale_grad_by_freq else None
        return RepeatVectors.apply(vectors, batch.inverse, counts, self.vector_dtype)  # type: ignore[no-any-return, no-untyped-call]

    def _batch_by_tier(self, flat: Tensor) -> Batch:
        # Graphs, and steps that wait for no device, have static shapes, whatever number of ids a tier has.
        compiling = torch.compiler.is_compiling()
        if reads_wait(flat.device):
            batch = self._static_batch(flat)
        elif not compiling:
            return Batch(*ops.unique_by_tier(flat, self.tiers.sizes, self.tier_of))
        elif self.training:
            batch = Batch(*ops.unique(flat, self.num_embeddings))
        else:  # finding duplicates would save nothing
            batch = Batch(flat, None, None)
        if self.capacity.num_tiers == 1 and batch.inverse is None and not compiling:
            return batch._replace(groups=[flat.shape[0]])
        return batch._replace(groups=self._tier_numbers(batch.ids))

    def _static_batch(self, flat: Tensor) -> Batch:
        """A batch whose shapes do not depend on the ids, made without a wait for the device.

        Each id is read and quantised as often as it occurs, which changes no sum; but where something depends on which
        ids are distinct, or ``distinct_on_gpu`` asks for it, these are found, by sorting.
        """
        if self.scale_grad_by_freq or (self.training and (self.distinct_on_gpu or self.quantizer.counts_distinct)):
            return Batch(*ops.unique_padded(flat))
        return Batch(flat, None, None)

    def _tier_numbers(self, ids: Tensor) -> Tensor:
        if self.capacity.num_tiers == 1:
            return torch.zeros_like(ids)
        if self.tier_of is not None:
            return self.tier_of[ids]
        if torch.compiler.is_compiling():
            return torch.bucketize(ids, self.tier_sizes.cumsum(0)[:-1], right=True)
        return torch.bucketize(ids, tier_ends(self.tiers.sizes, ids.device), right=True)

    @outside_graphs
    def _keep_loss(self, loss: Tensor) -> None:
        if not recomputing():
            self.losses.add(loss)

    # ---- rows of distinct ids ------------------------------------------------------------------------------

    @property
    def _tracks(self) -> bool:
        """Whether rows are read with a gradient."""
        return torch.is_grad_enabled() and (self.training or self.store.trains_in_eval_mode)

    def _rows_of(self, ids: Tensor, left_out: int | None = None) -> Tensor:
        """Rows of distinct ids in the vectors' dtype, with a gradient where one is due; see ``RowStore.train_rows``."""
        if not self._tracks:
            return self._read_rows(ids).to(self.vector_dtype)
        self._renormalize(ids)
        return self.store.train_rows(self.raw_weight, ids, self.sparse, left_out).to(self.vector_dtype)

    def _read_rows(self, ids: Tensor) -> Tensor:
        self._renormalize(ids)
        return self.store.read(self.raw_weight, ids)

    def _renormalize(self, ids: Tensor) -> None:
        """As nn.Embedding does before it reads rows: shorten in place those that are longer than ``max_norm``."""
        if self.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(self.raw_weight.detach(), ids, self.max_norm, self.norm_type)

    def _memory(self) -> AbstractContextManager[None]:
        return memory_for_rows(self.num_embeddings, self.embedding_dim)


@lru_cache(maxsize=256)
def tier_ends(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each tier but the last ends, int64, of tiers that are ranges of ids."""
    return torch.tensor(list(accumulate(sizes))[:-1], dtype=torch.int64, device=device)
