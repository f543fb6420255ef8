"""A click log with planted structure, of any size, made on the spot: the same seed gives the same log anywhere.

An interaction is an id, a context, and whether it was a click. Ids follow a power law; an id's taste z is a cluster's
centre plus a part of its own; a click has probability sigmoid(scale * <z_id, w_context>). All that a model can learn of
an id is in its interactions: ids are numbered without any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mgqe.codec.hashing import bucket_of

CENTRES, OWN, LATENT = 4_096, 65_536, 16


@dataclass(frozen=True)
class PlantedLog:
    """num_ids ids, contexts 0 .. num_contexts - 1; ids by rank ~ (rank + 1) ** -exponent."""

    num_ids: int
    num_contexts: int = 1_000
    exponent: float = 0.9
    scale: float = 2.5
    seed: int = 0

    def _table(self, name: int, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000 * self.seed + name)
        return torch.randn(rows, LATENT, generator=generator) / math.sqrt(LATENT)

    def batches(self, interactions: int, size: int, part: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(ids int64, contexts int64, clicks float32) of ``size``; ``part`` 0 is for training, others are held out."""
        centres, own = self._table(1, CENTRES), self._table(2, OWN)
        contexts = self._table(3, self.num_contexts) * math.sqrt(LATENT)
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + part)
        for start in range(0, interactions, size):
            n = min(size, interactions - start)
            rank = self._ranks(torch.rand(n, generator=generator, dtype=torch.float64))
            ids = self.id_of(rank)
            taste = centres[bucket_of(ids, CENTRES, 7, 0)] + 0.7 * own[bucket_of(ids, OWN, 7, 1)]
            context = torch.randint(self.num_contexts, (n,), generator=generator)
            chance = torch.sigmoid(self.scale * (taste * contexts[context]).sum(1))
            yield ids, context, (torch.rand(n, generator=generator) < chance).float()

    def _ranks(self, u: Tensor) -> Tensor:
        """The inverse of the distribution function of a continuous power law on [1, N + 1)."""
        power = 1 - self.exponent
        top = (self.num_ids + 1.0) ** power
        return ((u * (top - 1) + 1) ** (1 / power)).floor().long().sub_(1).clamp_(0, self.num_ids - 1)

    def id_of(self, rank: Tensor) -> Tensor:
        """A bijection of 0 .. N - 1 without order: multiplication by a number that N does not share a factor with."""
        step = int(self.num_ids * 0.6180339887) | 1
        while math.gcd(step, self.num_ids) > 1:
            step += 2
        return (rank * step + 12_345) % self.num_ids
