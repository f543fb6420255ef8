"""Kernels never read outside what they were given, whatever the tensors hold; in a child, which may die of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from instruction_sets import ALL, instruction_set
from ops_tables import mixed_table
from paths import SUPPORT

import mgqe
from mgqe import CompactTable, ops
from mgqe.codec.packing import pack

INT32_MIN = -(2**31)


def run_hostile(examples, seed, threads, *isa):
    """What the worker printed; fails where it crashed or found a wrong answer."""
    path = os.pathsep.join([str(Path(mgqe.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "hostile_worker.py"), str(examples), str(seed), *isa],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert "WRONG" not in done.stdout, done.stdout
    assert "'answered'" in done.stdout
    assert "'refused whole'" in done.stdout


@pytest.mark.parametrize("isa", ALL)
def test_no_table_makes_a_kernel_read_elsewhere(isa):
    with instruction_set(isa):  # in a process of its own, since a fault would end this one
        run_hostile(20, 1, 1, isa)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_tables_make_no_kernel_read_elsewhere(seed):
    run_hostile(1000, seed, 2)


def mapped_table():
    """600 ids of two tiers that alternate; codes of 4 bits in 2 subspaces of 1 dimension."""
    tiers = mgqe.Tiers.from_assignment(torch.arange(600) % 2)
    codes = [torch.randint(16, (300, 2), generator=torch.Generator().manual_seed(g)) for g in range(2)]
    book = torch.randn(2, 16, 1, generator=torch.Generator().manual_seed(2))
    return CompactTable.from_codes(tiers, codes, [book], [0, 0], [16, 16])


@pytest.mark.parametrize("value", [INT32_MIN, -1, 1, 2**31 - 1])
@pytest.mark.parametrize("block", [0, 2])
def test_ranks_that_lie_are_refused_when_the_table_is_made(value, block):
    tensors, config = mapped_table().to_tensors()
    ranks = tensors["tier_map.ranks.0"].clone()
    ranks[block] = value
    with pytest.raises(ValueError, match=r"'tier_map\.ranks\.0' disagrees with the bits it counts"):
        CompactTable.from_tensors({**tensors, "tier_map.ranks.0": ranks}, config)


def test_bits_that_lie_are_refused_when_the_table_is_made():
    tensors, config = mapped_table().to_tensors()
    bits = tensors["tier_map.bits.0"].clone()
    bits[0] = 0
    with pytest.raises(ValueError, match=r"'tier_map\.bits\.0' marks 268 ids, but tier 1 has 300"):
        CompactTable.from_tensors({**tensors, "tier_map.bits.0": bits}, config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("centroids.0", torch.empty(2, 16, 1, device="meta"), "is on cpu, the table's other tensors on meta"),
        (
            "codes.1",
            torch.zeros(300, 1, dtype=torch.uint8).to_sparse(),
            r"'codes\.1' must be .*, got torch\.sparse_coo",
        ),
        ("codes.1", None, r"'codes\.1' must be .*, got NoneType"),
    ],
)
def test_parts_without_memory_where_the_others_have_it_are_refused(name, value, message):
    tensors, config = mapped_table().to_tensors()
    with pytest.raises(ValueError, match=message):
        CompactTable.from_tensors({**tensors, name: value}, config)


def test_parts_on_several_devices_are_refused():
    parts = mapped_table().snapshot.lookup.table
    centroids = [book.to("meta") for book in parts.centroids]
    with pytest.raises(ValueError, match="must be on one device, got cpu, meta"):
        ops.PreparedLookup(ops.TableBuffers(**{**vars(parts), "centroids": centroids}))


def test_a_map_damaged_later_is_an_error_of_every_search():
    if not ops.native_available():
        pytest.skip("the native library is not built")
    table = mapped_table()
    item_bias = table.item_bias(torch.ones(600))
    table.snapshot.lookup.table.map_ranks[0].fill_(INT32_MIN)
    query, ids = torch.ones(2), torch.arange(600)
    for call in (
        lambda: table.lookup(ids),
        lambda: table.bag(ids.view(2, 300)),
        lambda: table.topk(query, 5),
        lambda: table.topk(query, 5, candidates=ids[:5]),
        lambda: table.topk(query, 5, exclude=ids[:5]),
        lambda: table.topk(query, 5, exclude=torch.arange(600) % 3 == 0),
        lambda: table.topk(query, 5, bias=item_bias),
        lambda: table.topk(query, 5, bias=item_bias, candidates=ids[:5]),
    ):
        with pytest.raises(ValueError, match="tier map is damaged"):
            call()


@pytest.mark.parametrize(
    ("of", "field", "value"),
    [
        ("piece", "bit", -8),
        ("piece", "bit", 2**62),
        ("piece", "bits", -1),
        ("piece", "bits", 17),
        ("piece", "coordinate", -1),
        ("piece", "coordinate", 2**31 - 1),
        ("piece", "width", 0),
        ("piece", "width", 2**31 - 1),
        ("piece", "entry", -1),
        ("piece", "entry", 2**62),
        ("piece", "num_centroids", 1),
        ("piece", "num_centroids", 2**31 - 1),
        ("tier", "book_floats", 100),
        ("tier", "book_floats", -(2**63)),
        ("tier", "row_bytes", 0),
        ("tier", "row_bytes", 2**40),
        ("tier", "bits", 9),
        ("tier", "dtype", 2),
        ("tier", "num_subspaces", 3),
        ("tier", "layout", None),
        ("table", "num_coordinates", 16),
        ("table", "num_coordinates", 2**62),
        ("table", "embedding_dim", 0),
        ("table", "matrix", None),
        ("table", "mean", None),
    ],
)
def test_numbers_of_a_mixed_table_that_do_not_fit_are_refused(of, field, value):
    if not ops.native_available():
        pytest.skip("the native library is not built")
    parts, _, _ = mixed_table(matrix=torch.float32)
    prepared = ops.PreparedLookup(parts)
    c_table = prepared.descriptor.table
    struct = {"table": c_table, "tier": c_table.tiers[1], "piece": c_table.tiers[1].layout[2]}[of]
    before = getattr(struct, field)
    setattr(struct, field, value)
    try:
        for call in (
            lambda: prepared(torch.arange(5)),
            lambda: ops.bag(prepared, torch.arange(6).view(2, 3)),
            lambda: ops.topk(prepared, ops.TopKJob(torch.ones(1, parts.embedding_dim), 3)),
            lambda: ops.topk(prepared, ops.TopKJob(torch.ones(1, parts.embedding_dim), 3, cosine=True)),
        ):
            with pytest.raises(RuntimeError, match="refused its arguments"):
                call()
    finally:
        setattr(struct, field, before)


def test_a_map_of_a_mixed_table_that_is_damaged_later_is_an_error():
    if not ops.native_available():
        pytest.skip("the native library is not built")
    parts, _, _ = mixed_table(matrix=torch.float32, shuffled=True, padding_idx=3)
    prepared, ids = ops.PreparedLookup(parts), torch.arange(330)
    parts.map_ranks[0].fill_(INT32_MIN)
    for call in (
        lambda: prepared(ids),
        lambda: ops.bag(prepared, ids.view(33, 10)),
        lambda: ops.topk(prepared, ops.TopKJob(torch.ones(1, parts.embedding_dim), 3)),
        lambda: ops.topk(prepared, ops.TopKJob(torch.ones(1, parts.embedding_dim), 3, cosine=True)),
    ):
        with pytest.raises(ValueError, match="tier map is damaged"):
            call()


def test_padding_outside_the_table_is_refused():
    parts = mapped_table().snapshot.lookup.table
    for padding in (600, -2, 2**40):
        with pytest.raises(ValueError, match=f"padding_idx must be -1 or in 0 .. 599, got {padding}"):
            ops.PreparedLookup(ops.TableBuffers(**{**vars(parts), "padding_idx": padding}))


def test_codes_beyond_int32_do_not_wrap_around():
    codes = torch.tensor([[2**32 + 1]])
    with pytest.raises(IndexError, match="out of range"):
        ops.gather(codes, torch.zeros(1, 4, 2))
    with pytest.raises(IndexError, match="out of range"):
        ops.scatter(torch.zeros(1, 2), codes, None, 1, 4, 2)


def test_codes_beyond_the_codebook_decode_to_its_last_centroid():
    table = CompactTable.from_codes(
        mgqe.Tiers.from_sizes([3]), [torch.tensor([[0], [1], [2]])], [torch.tensor([[[1.0], [2.0], [3.0]]])], [0], [3]
    )
    tensors, config = table.to_tensors()
    tensors["codes.0"] = pack(torch.tensor([[3], [3], [0]]), 2)
    other = CompactTable.from_tensors(tensors, config)
    assert other.lookup(torch.arange(3)).flatten().tolist() == [3.0, 3.0, 1.0]
    assert other.topk(torch.ones(1), 3).ids.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="holds code 3"):
        other.validate()
