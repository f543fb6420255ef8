"""A table written in shards, as several processes would."""

from __future__ import annotations

import itertools

import torch

import mgqe
from mgqe.codec.capacity import Capacity
from mgqe.codec.layout import TableLayout
from mgqe.codec.packing import pack
from mgqe.codec.tensors import lay_out_frame
from mgqe.table.sharded import new_set, prepared_index, publish_index, remove_other_shards, tier_order, write_shard

N, D, K = 1000, 4, (16, 6)


def parts(ordered: bool, dtype: str = "int8"):
    made = torch.Generator().manual_seed(3)
    sizes = (100, 900)
    tiers = mgqe.Tiers.from_sizes(sizes)
    if not ordered:
        tier_of = torch.repeat_interleave(torch.arange(2, dtype=torch.uint8), torch.tensor(sizes))
        tiers = mgqe.Tiers(sizes, tier_of[torch.randperm(N, generator=made)])
    codes = [torch.randint(0, k, (n, D), generator=made) for n, k in zip(sizes, K)]
    return tiers, codes, [torch.randn(D, K[0], 2, generator=made)], dtype


def write_shards(folder, table, tiers, bounds):
    """A table as several processes would write it, each with the ids from one bound to the next."""
    tensors, config = table.to_tensors()
    m = tiers.num_tiers
    codes = [tensors.pop(f"codes.{g}") for g in range(m)]
    set_name, shards = new_set(), []
    folder.mkdir(exist_ok=True)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        members = [tiers.members(g) for g in range(m)]
        mine = [c[(ids >= start) & (ids < stop)] for c, ids in zip(codes, members)]
        shards.append([len(c) for c in mine])
        write_shard(folder, set_name, number, table.config.code_tensors(shards[-1]), [mine[g] for g in tier_order(m)])
    with prepared_index(folder, set_name, tensors, config, shards) as (temporary, _):
        publish_index(folder, temporary)


def write(folder, bounds, ordered=False, dtype="int8"):
    """As several processes would, each with the ids from one bound to the next."""
    tiers, codes, books, dtype = parts(ordered, dtype)
    layout = TableLayout.of(tiers, Capacity.of(2 * D, tiers.sizes, (D, D), K), dtype, None)
    frame = lay_out_frame(layout, tiers, books)
    set_name, shards = new_set(), []
    folder.mkdir(exist_ok=True)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        members = [tiers.members(g) for g in range(2)]
        mine = [c[(m >= start) & (m < stop)] for c, m in zip(codes, members)]
        chunks = (pack(chunk, layout.bits[g]) for g in tier_order(2) for chunk in mine[g].split(37))
        write_shard(folder, set_name, number, layout.code_tensors([len(c) for c in mine]), chunks)
        shards.append([len(c) for c in mine])
    with prepared_index(folder, set_name, frame, layout.to_json(), shards) as (temporary, _):
        publish_index(folder, temporary)
    remove_other_shards(folder, set_name)
    return mgqe.CompactTable.from_codes(tiers, codes, books, (0, 0), K, None, dtype), set_name
