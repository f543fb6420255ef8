"""FixedStore: codes that stay as they are; the centroids train (:class:`mgqe.nn.rows.CodeRows`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.codec.capacity import Capacity
from mgqe.codec.packing import code_dtype
from mgqe.codec.tiers import Tiers
from mgqe.nn.context.decorators import outside_graphs
from mgqe.nn.quantizers.vq import VQQuantizer
from mgqe.nn.rows.cache import checked_codes
from mgqe.nn.rows.config import CodeRows
from mgqe.nn.rows.store import RowStore


class FixedStore(RowStore, nn.Module):
    """Rows are their codes' centroids. Bytes per row of the vocabulary: D, or 2 D beyond 256 centroids.

    Attributes:
        codes_held: (N, D).
    """

    codes_are_fixed = True
    may_revive = False

    codes_held: Tensor

    def __init__(
        self, config: CodeRows, tiers: Tiers, capacity: Capacity, quantizer: VQQuantizer, device: torch.device
    ) -> None:
        super().__init__()
        self._tiers, self._capacity = tiers, capacity
        self._quantizer = (quantizer,)
        shape = (tiers.num_embeddings, max(capacity.num_subspaces))
        codes = checked_codes(config.codes, shape, capacity, tiers, device)
        self.register_buffer("codes_held", codes.to(device, code_dtype(max(capacity.num_centroids)), copy=True))
        self._init_std = config.init_std
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Centroids at random; the codes stay."""
        for book in self._quantizer[0].codebooks:
            book.normal_(std=self._init_std)

    def read(self, weight: Tensor, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.train_rows(weight, ids, False)

    @outside_graphs
    def train_rows(self, weight: Tensor, ids: Tensor, sparse: bool, left_out: int | None = None) -> Tensor:
        if self._capacity.num_tiers == 1:
            return self._decoded(ids, 0)
        tier = self._tiers.of(ids)
        rows = torch.zeros(ids.shape[0], self._capacity.embedding_dim, dtype=torch.float32, device=ids.device)
        for g in range(self._capacity.num_tiers):
            chosen = (tier == g).nonzero().squeeze(1)
            rows = rows.index_copy(0, chosen, self._decoded(ids[chosen], g))
        return rows

    def _decoded(self, ids: Tensor, tier: int) -> Tensor:
        codes = self.codes_held[ids, : self._capacity.num_subspaces[tier]].to(torch.int32)
        return ops.gather(codes, self._quantizer[0].values(self._capacity.codebook_of[tier]))

    def codes(self, ids: Tensor, tier: int) -> Tensor | None:
        return self.codes_held[ids, : self._capacity.num_subspaces[tier]].to(torch.int32)
