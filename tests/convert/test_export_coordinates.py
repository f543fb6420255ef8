"""The index byte of every coordinate has its code, against codes unpacked one by one."""

from __future__ import annotations

import pytest
import torch
from export_cases import LAYOUTS, layout
from table_cases import CASES, build

from mgqe.codec.packing import unpack
from mgqe.convert.export.coordinates import coordinates_of, in_bytes


def index_bytes(packed, where):
    """Of each row and coordinate."""
    joined = [
        (packed[:, first] & (0xFF << shift) & 0xFF) | (packed[:, first + 1] & ((1 << rest) - 1))
        for first, shift, rest in where.joined
    ]
    columns = [*packed.T, *joined]
    return torch.stack([columns[b] for b in where.byte], dim=1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_index_bytes_rotated_are_codes_and_entries_are_their_centroids(name):
    table = layout(name)
    shapes, snapshot = table.config, table.snapshot
    if not in_bytes(shapes):
        assert max(tier.bits for tier in shapes.tiers if tier.ids) > 8 or not all(
            tier.row_bytes for tier in shapes.tiers if tier.ids
        )
        return
    for g, tier in enumerate(shapes.tiers):
        if not tier.ids:
            continue
        book = snapshot.centroids[tier.codebook]
        where, packed = coordinates_of(shapes, g, tuple(book.shape)), snapshot.codes[g]
        shift = torch.tensor(where.shift)
        byte = index_bytes(packed, where).long()
        code = ((byte >> shift) | (byte << (8 - shift))) & ((1 << torch.tensor(where.bits)) - 1)
        codes = unpack(packed, tier.num_subspaces, tier.packing).long()
        per_code = shapes.widths or (shapes.embedding_dim // tier.num_subspaces,) * tier.num_subspaces
        assert torch.equal(code, codes.repeat_interleave(torch.tensor(per_code), dim=1))
        values = book.reshape(-1)[code * torch.tensor(where.stride) + torch.tensor(where.first)].float()
        if snapshot.scales[tier.codebook].numel():
            values *= snapshot.scales[tier.codebook][torch.tensor(where.scale)]
        if shapes.matrix_dtype is None and shapes.padding_idx is None:
            ids = torch.arange(table.num_embeddings)
            assert torch.equal(values, table.lookup(ids[table.locate(ids)[0] == g]))


def test_codes_of_more_than_a_byte_and_rows_without_bytes_have_no_index_bytes():
    named = {case.name: case for case in CASES}
    assert not in_bytes(build(named["mixed, 16 bits"]).table.config)
    assert not in_bytes(build(named["turned, a tier without bits"]).table.config)
    assert in_bytes(build(named["mixed"]).table.config)
