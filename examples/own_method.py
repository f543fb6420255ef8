"""A method of one's own beside the library's: random codes, whose centroids are trained.

    cd examples && mgqe compare --embedding full --embedding own_method.RandomCodes:num_subspaces=8 --out own

Every id gets `num_subspaces` random numbers below `num_centroids`, and its row is put together from the centroids of
these numbers. That ids share pieces by chance is what codes that are fitted to rows have to beat.
"""

import torch
from torch import Tensor, nn

from mgqe.codec.tiers import Tiers
from mgqe.table.compact import CompactTable


class RandomCodes(nn.Module):
    codes: Tensor

    # Keywords after the star are the options of --embedding; `counts`, `pairs` and `seed` are passed by the trainer.
    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, num_subspaces: int = 8, num_centroids: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        shape, generator = (num_embeddings, num_subspaces), torch.Generator().manual_seed(seed)
        self.register_buffer("codes", torch.randint(num_centroids, shape, generator=generator))
        self.centroids = nn.Parameter(torch.randn(num_subspaces, num_centroids, embedding_dim // num_subspaces))

    def forward(self, input: Tensor) -> Tensor:
        codes = self.codes[input]  # (..., D)
        subspaces = torch.arange(len(self.centroids), device=codes.device)
        return self.centroids[subspaces, codes].flatten(-2)  # (..., D, d / D) -> (..., d)

    # What is served, and whose file's bytes are counted: one of mgqe's tables, or a FrozenTable of your own.
    def freeze(self) -> CompactTable:
        tiers = Tiers.from_sizes((self.num_embeddings,))
        return CompactTable.from_codes(
            tiers, [self.codes.cpu()], [self.centroids.detach().cpu()], (0,), (self.centroids.shape[1],)
        )
