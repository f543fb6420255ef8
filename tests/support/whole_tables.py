"""Tables whose centroids and matrix are whole numbers, of any layout."""

from __future__ import annotations

import torch

from mgqe.codec.tiers import Tiers
from mgqe.table.compact import CompactTable


def whole_table(
    widths, bits_of_tiers, tiers, dim, seed=0, shared_levels=False, turned=True, padding_idx=None
) -> CompactTable:
    """Tiers are given by their sizes, or as the tier of each id."""
    generator = torch.Generator().manual_seed(seed)
    of_ids = isinstance(tiers, torch.Tensor)
    tiers = Tiers.from_assignment(tiers) if of_ids else Tiers.from_sizes(tiers)
    sizes = tiers.sizes
    codes = [
        torch.stack([torch.randint(0, 1 << b, (n,), generator=generator) for b in bits], dim=1)
        for n, bits in zip(sizes, bits_of_tiers, strict=True)
    ]
    levels = {b: torch.randint(-127, 128, (1 << b,), generator=generator).float() for b in range(9)}
    books = []
    for bits in bits_of_tiers:
        parts = [
            levels[b] if shared_levels else torch.randint(-127, 128, (w << b,), generator=generator).float()
            for w, b in zip(widths, bits, strict=True)
        ]
        books.append(torch.cat(parts))
    mean, matrix = torch.randn(dim, generator=generator), torch.randn(sum(widths), dim, generator=generator)
    matrix = matrix if turned else matrix.abs() * torch.eye(dim)
    return CompactTable.from_mixed_codes(
        tiers,
        codes,
        books,
        range(len(sizes)),
        widths,
        bits_of_tiers,
        padding_idx,
        centroid_dtype="int8",
        mean=mean,
        matrix=matrix,
        matrix_dtype="int8_columns",
    )
