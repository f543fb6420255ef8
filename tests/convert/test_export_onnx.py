"""ONNX files of frozen models: ONNX Runtime's outputs, sizes, what is in the file, and bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from export_cases import (
    DIM,
    LAYOUTS,
    N,
    batch,
    check_rows,
    frozen,
    layout,
    needs_onnx,
    one_tier,
    open_onnx,
    tables_of,
    two_towers,
)
from table_cases import CASES, build
from torch import nn

import mgqe
from mgqe import CompactEmbedding, CompactEmbeddingBag, CompactTable
from mgqe.recsys.models.deepfm import DeepFM
from mgqe.recsys.models.gmf import GMF
from mgqe.recsys.models.neumf import NeuMF
from mgqe.recsys.models.sasrec import SASRec

MODEL = {"rtol": 1e-5, "atol": 1e-5}  # of a whole model's outputs
BAG = {"rtol": 1e-6, "atol": 1e-6}
FAST = (
    "int8",
    "three ranges, 11 bits",
    "turned, int8",
)  # between them: a tier map, ranges, codes over several bytes, scales
SMALL = 2_048  # bytes, as of scales, which may be folded into what is worked out from them
GRAPH = 12_000  # bytes at most, per tier of a table


def check_look_ups(table: CompactTable, path) -> None:
    written = mgqe.export_onnx(CompactEmbedding(table), torch.tensor([0, 1, 2]), path)
    assert written == path.stat().st_size
    assert written < table.nbytes + GRAPH * len(table.config.sizes)
    run, ids = open_onnx(path), torch.arange(table.num_embeddings)
    check_rows(run(ids), table)
    assert run(ids[:0]).shape == (0, table.embedding_dim)
    for unknown in (-1, table.num_embeddings, 1 << 62):
        with pytest.raises(Exception, match=r"out of (data )?bounds"):
            run(torch.tensor([0, unknown]))


def check_model(model: nn.Module, path, *batches: tuple[torch.Tensor, ...]) -> None:
    """Equal outputs, and a file of at most 1.1 times the frozen tables and the dense weights, with the codes in it."""
    written = mgqe.export_onnx(model, batches[0], path)
    run = open_onnx(path)
    for arguments in batches:
        torch.testing.assert_close(run(*arguments), model(*arguments), **MODEL)
    tables = sum(table.nbytes for table in tables_of(model))
    dense = sum(p.nbytes for p in model.parameters())
    assert path.stat().st_size == written
    assert written <= 1.1 * (tables + dense), f"{written} bytes for {tables} + {dense}"
    content = path.read_bytes()
    for table in tables_of(model):
        for name, tensor in table.to_tensors()[0].items():
            if tensor.nbytes > SMALL:
                assert tensor.numpy().tobytes() in content, name


@needs_onnx
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS])
def test_look_ups(name, tmp_path):
    check_look_ups(layout(name), tmp_path / "table.onnx")


@needs_onnx
@pytest.mark.parametrize("padding", [None, 100])
def test_whole_numbers_in_a_codebook_for_each_tier_whose_codes_lie_alike(padding, tmp_path):
    case = next(c for c in CASES if c.name == "whole, a codebook a tier")
    alike = replace(case, code_bits=((8, 7, 8), (1, 1, 1), (8, 7, 8)), padding_idx=padding)
    check_look_ups(build(alike).table, tmp_path / "table.onnx")


@needs_onnx
@pytest.mark.slow
def test_appended_ids(tmp_path):
    table = build(CASES[0]).table
    table.append(torch.randn(5, 8), tier=0)
    table.append(torch.randn(5, 8))
    check_look_ups(table, tmp_path / "table.onnx")


@needs_onnx
def test_a_fallback_stands_for_unknown_ids(tmp_path):
    table = one_tier().with_fallback(torch.arange(float(DIM)))
    mgqe.export_onnx(CompactEmbedding(table), torch.tensor([0, 1]), tmp_path / "table.onnx")
    ids = torch.tensor([-1, 0, 1 << 61, 599, 600])
    assert torch.equal(open_onnx(tmp_path / "table.onnx")(ids), table.lookup(ids))


@needs_onnx
@pytest.mark.slow
def test_half_vectors_and_int32_ids(tmp_path):
    model = CompactEmbedding(one_tier(), dtype=torch.float16)
    mgqe.export_onnx(model, torch.tensor([0, 1], dtype=torch.int32), tmp_path / "table.onnx")
    ids = torch.arange(600, dtype=torch.int32)
    assert torch.equal(open_onnx(tmp_path / "table.onnx")(ids), model(ids))


class AllBags(nn.Module):
    """One table pooled in every mode, with padding, empty bags and weights."""

    def __init__(self, table: CompactTable, last: bool = False) -> None:
        super().__init__()
        self.sum = CompactEmbeddingBag(table, mode="sum", include_last_offset=last)
        self.mean = CompactEmbeddingBag(table, mode="mean", include_last_offset=last)
        self.max = CompactEmbeddingBag(table, mode="max", include_last_offset=last)

    def forward(self, ids, offsets, weights):
        plain = [bag(ids, offsets) for bag in (self.sum, self.mean, self.max)]
        return torch.stack([*plain, self.sum(ids, offsets, weights)])


def check_bags(model: nn.Module, path, last: bool) -> None:
    def inputs(ids, offsets):
        ids = torch.tensor(ids, dtype=torch.int64)
        weights = torch.randn(len(ids), generator=torch.Generator().manual_seed(0))
        arguments = ids, torch.tensor([*offsets, len(ids)] if last else offsets), weights
        return arguments if isinstance(model, AllBags) else arguments[:2]

    mgqe.export_onnx(model, inputs([5, 3, 3, 7, 1], [0, 1, 3]), path)
    run = open_onnx(path)
    # Empty bags in the middle, at the end, at the start, and all of them; and a bag of only padding.
    for ids, offsets in (
        ([3, 3, 5, 7, 20, 0, 1], [0, 2, 2, 5]),
        ([1, 2, 3, 3], [0, 0, 2, 4, 4]),
        ([2], [0]),
        ([], [0, 0]),
    ):
        arguments = inputs(ids, offsets)
        torch.testing.assert_close(run(*arguments), model(*arguments), **BAG)


@needs_onnx
def test_bags_agree_to_rounding(tmp_path):
    bag = CompactEmbeddingBag(build(replace(CASES[2], padding_idx=3)).table, mode="mean")
    check_bags(bag, tmp_path / "bag.onnx", False)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", [None, 3])
def test_bags_of_two_tiers(last, padding, tmp_path):
    table = build(replace(CASES[0], padding_idx=padding)).table
    check_bags(AllBags(table, last), tmp_path / "bags.onnx", last)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_equal_length(mode, tmp_path):
    bag = CompactEmbeddingBag(build(replace(CASES[0], padding_idx=3)).table, mode=mode)
    ids = torch.tensor([[1, 3, 46], [3, 3, 3], [7, 7, 0]])
    mgqe.export_onnx(bag, ids[:2], tmp_path / "bag.onnx")
    run = open_onnx(tmp_path / "bag.onnx")
    for arguments in (ids, ids[1:2], ids[:0]):
        torch.testing.assert_close(run(arguments), bag(arguments), **BAG)


def pairs(n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Users (b,) and items (b, c)."""
    generator = torch.Generator().manual_seed(size)
    return torch.randint(n, (size,), generator=generator), torch.randint(n, (size, 3), generator=generator)


@needs_onnx
def test_a_ranking_model_and_the_size_of_its_file(tmp_path):
    model = frozen(GMF(nn.Embedding(20_000, 32), nn.Embedding(20_000, 32), 32), "user")
    check_model(model, tmp_path / "gmf.onnx", *(pairs(20_000, size) for size in (5, 1, 9)))
    assert (tmp_path / "gmf.onnx").stat().st_size < 0.15 * (4 * 32 * 40_000)  # of the float32 tables


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("centroid_dtype", ["float32", "float16", "int8"])
def test_two_towers(centroid_dtype, tmp_path):
    model = two_towers(20_000, centroid_dtype=centroid_dtype)
    check_model(model, tmp_path / "model.onnx", *(batch(size, size) for size in (5, 1, 9)))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DeepFM", "NeuMF"])
def test_models_that_look_up_distinct_items(kind, tmp_path):
    n, dim = 40_000, 16
    tables = [nn.Embedding(n, dim) for _ in range(4)]
    batches = [pairs(n, size) for size in (5, 1, 9)]
    if kind == "DeepFM":
        model: nn.Module = DeepFM({"user": tables[0], "item": tables[1], "city": tables[2]})
        batches = [(torch.stack([users, users.flip(0)], 1), items) for users, items in batches]
    else:
        model = NeuMF(*tables, embedding_dim=dim)
    frozen(model, "fields.user" if kind == "DeepFM" else "gmf_user")
    check_model(model, tmp_path / "model.onnx", *batches)


class Tied(nn.Module):
    """Two embeddings and an output layer that share one weight."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.other, self.head = nn.Embedding(n, DIM), nn.Embedding(n, DIM), nn.Linear(DIM, n)
        self.other.weight = self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids) + self.other(ids + 1))


@needs_onnx
@pytest.mark.slow
def test_tied_tables_are_in_the_file_once(tmp_path):
    model = frozen(Tied(40_000), "embed")
    assert len(tables_of(model)) == 1
    path, ids = tmp_path / "tied.onnx", torch.tensor([0, 3, 39_998])
    check_model(model, path, (ids,), (ids[:1],))


@needs_onnx
def test_large_tensors_of_the_file_are_codes(tmp_path):
    import onnx

    table = one_tier()
    mgqe.export_onnx(CompactEmbedding(table), torch.tensor([0, 1]), tmp_path / "table.onnx")
    model = onnx.load(tmp_path / "table.onnx")
    onnx.checker.check_model(model)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}  # standard operators alone
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    stored = {(onnx.TensorProto.DataType.Name(t.data_type), tuple(t.dims)) for t in model.graph.initializer}
    assert ("UINT8", tuple(table.to_tensors()[0]["codes.0"].shape)) in stored
    assert max(np.prod(dims) for kind, dims in stored if kind == "FLOAT") <= DIM * 16  # centroids: no decoded rows


@needs_onnx
def test_bad_input(tmp_path):
    compact, path = CompactEmbedding(one_tier()), tmp_path / "x.onnx"
    with pytest.raises(ValueError, match=r"no compact table: call mgqe\.compress_"):
        mgqe.export_onnx(nn.Linear(2, 2), torch.randn(2, 2), path)
    with pytest.raises(ValueError, match="an example batch of 2 or more"):
        mgqe.export_onnx(compact, torch.tensor([1]), path)
    with pytest.raises(ValueError, match="at least 18"):
        mgqe.export_onnx(compact, torch.tensor([1, 2]), path, opset_version=17)
    model = frozen(SASRec(nn.Embedding(N, DIM), DIM))
    with pytest.raises(ValueError, match=r"cannot trace SASRec with these example inputs: .*must not turn values"):
        mgqe.export_onnx(model, (torch.arange(9), torch.tensor([4, 5])), path)

    class Distinct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = compact

        def forward(self, ids):
            return self.embed(torch.ops.mgqe.unique(ids, 600)[0])

    with pytest.raises(ValueError, match=r"ONNX has nothing for the operator mgqe\.unique: write that step with"):
        mgqe.export_onnx(Distinct(), torch.tensor([1, 2]), path)
    assert not list(tmp_path.iterdir())


def test_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"needs onnx: pip install 'mgqe\[onnx\]'"):
        mgqe.export_onnx(CompactEmbedding(one_tier()), torch.tensor([1, 2]), tmp_path / "x.onnx")
