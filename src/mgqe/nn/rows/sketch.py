"""SketchStore: rows from shared centroids and a hashed table, clustered again at intervals (:class:`SketchRows`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgqe import ops
from mgqe.codec.hashing import bucket_of
from mgqe.codec.kmeans import KMeans, kmeans
from mgqe.codec.packing import code_dtype
from mgqe.nn.context.ddp import cpu_generator
from mgqe.nn.context.decorators import outside_graphs
from mgqe.nn.rows.config import SketchRows
from mgqe.nn.rows.store import HostState, RowStore, StateEntry, chunks

LEAST_BUCKETS = 256
CHUNK = 1 << 17
ITERATIONS = KMeans(iterations=10)


class SketchStore(HostState, RowStore, nn.Module):
    """Row i in subspace j: centroids[j, pointers[i, j]] + entry (j, h_j(i)) of the hashed table, the parameter.

    Bytes per row of the vocabulary: D for its pointers (2 D beyond 256 centroids), and its share of the hashed table.

    Attributes:
        pointers: (N, D).
        centroids: parameter (D * K, s), those of a subspace together.
        state: int64 (3,) what checkpoints keep of the entries named here.
        clusterings: how many there were.
        salt: of the hashes.
        clustered_at: training passes before the last clustering.
    """

    pointers: Tensor
    state: Tensor
    clusterings = StateEntry(0)
    salt = StateEntry(1)
    clustered_at = StateEntry(2)

    def __init__(
        self,
        config: SketchRows,
        num_embeddings: int,
        dim: int,
        subspaces: int,
        like: Tensor,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.buckets = buckets_of(config, num_embeddings)
        self.num_centroids = min(config.num_centroids, num_embeddings) if num_embeddings > 1 else 2
        shape, kind = (num_embeddings, subspaces), code_dtype(self.num_centroids)
        self.register_buffer("pointers", torch.empty(shape, dtype=kind, device=like.device))
        self.centroids = nn.Parameter(like.new_zeros(subspaces * self.num_centroids, dim // subspaces))
        self.register_buffer("state", torch.zeros(3, dtype=torch.int64, device="cpu"))
        self._draw(generator)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Centroids at zero, other pointers and another hash."""
        self.centroids.zero_()
        self._draw(cpu_generator())

    def _draw(self, generator: torch.Generator) -> None:
        """Pointers and hash at random, no clustering yet."""
        for ids in torch.split(self.pointers, CHUNK):
            drawn = torch.randint(self.num_centroids, ids.shape, generator=generator, device="cpu")
            ids.copy_(drawn)
        self.state.zero_()
        self._draw_salt(generator)

    def _draw_salt(self, generator: torch.Generator) -> None:
        self.salt = int(torch.randint(2**31, (), generator=generator, device="cpu"))

    def read(self, weight: Tensor, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.train_rows(weight, ids, False).float()

    @outside_graphs
    def train_rows(self, weight: Tensor, ids: Tensor, sparse: bool, left_out: int | None = None) -> Tensor:
        shared = ops.gather(self.pointers[ids].to(torch.int32), self._book().float())
        entries = F.embedding(self._entries(ids), weight, sparse=sparse).flatten(1)
        return shared.to(entries.dtype) + entries

    def _book(self) -> Tensor:
        """(D, K, s)."""
        return self.centroids.view(self.pointers.shape[1], self.num_centroids, -1)

    def _entries(self, ids: Tensor) -> Tensor:
        """Rows of the hashed table: (n, D); each subspace has a hash and a range of the table of its own."""
        subspace = torch.arange(self.pointers.shape[1], device=ids.device)
        return bucket_of(ids.unsqueeze(1), self.buckets, self.salt, subspace) + subspace * self.buckets

    @torch.no_grad()
    def after_step(self, weight: Tensor, passes: int) -> None:
        config = self.config
        due = config.interval and passes - self.clustered_at >= config.interval
        if due and self.clusterings < config.clusterings:
            self.cluster(weight, cpu_generator())
            self.clustered_at = passes

    @torch.no_grad()
    def cluster(self, weight: Tensor, generator: torch.Generator) -> None:
        """Centroids of the rows as they are; pointers to them; the hashed table at zero, with another hash."""
        total, subspaces = self.pointers.shape
        width = self.centroids.shape[1]
        sample = torch.randint(total, (min(total, 1 << 16),), generator=generator, device="cpu").to(weight.device)
        none = torch.empty(subspaces, 0, width, dtype=torch.float32, device=weight.device)
        book = kmeans([(self.read(weight, sample), subspaces)], none, self.num_centroids, generator, ITERATIONS)
        for ids in chunks(total, CHUNK, weight.device):
            self.pointers[ids] = ops.assign(self.read(weight, ids), book, None).to(self.pointers.dtype)
        self.centroids.copy_(book.flatten(0, 1))
        weight.zero_()
        self.clusterings += 1
        self._draw_salt(generator)


def buckets_of(config: SketchRows, num_embeddings: int) -> int:
    """B, entries of the hashed table per subspace."""
    return max(LEAST_BUCKETS, num_embeddings // 16) if config.buckets is None else config.buckets
