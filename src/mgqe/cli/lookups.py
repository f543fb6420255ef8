"""What look-ups of a frozen table are expected to take, for commands that show tables."""

from __future__ import annotations

from torch import Tensor

from mgqe.codec.planning.speed import Frequencies, lookup_share
from mgqe.table.compact import CompactTable


def table_lookup_share(table: CompactTable, counts: Tensor | None = None) -> float:
    """As a share of nn.Embedding's time; counts (N,): how often each id is looked up; without, all alike."""
    transform = table.snapshot.transform
    turned = transform is not None and transform.turns
    return lookup_share(table.config, Frequencies.of(table.num_embeddings, counts), turned)
