"""fold_matrix: a linear layer over coordinates gives what it gave over vectors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mgqe
from mgqe.codec.tiers import Tiers

N, D = 120, 6
TIERS = {"in order": Tiers.from_sizes([40, 80]), "mapped": Tiers.from_assignment(torch.arange(N) % 3 // 2, num_tiers=2)}
# Widths and, by tier, bits: joined coordinates; levels; fewer coordinates than numbers; a tier without bits.
SHAPES = {
    "joined": ((1, 2, 3), ((4, 3, 5), (2, 0, 3))),
    "levels": ((1,) * 6, ((4, 4, 3, 3, 2, 2), (3, 3, 2, 2, 0, 0))),
    "few": ((1, 2), ((4, 3), (2, 1))),
}


def made(shape="joined", matrix_dtype="int8_columns", padding_idx=None, tiers="in order", seed=0):
    """A table whose rows are turned."""
    generator = torch.Generator().manual_seed(seed)
    widths, bits = SHAPES[shape]
    sizes, whole = TIERS[tiers].sizes, matrix_dtype == "int8_columns"
    codes = [
        torch.stack([torch.randint(1 << b, (n,), generator=generator) for b in of_tier], 1)
        for n, of_tier in zip(sizes, bits, strict=True)
    ]
    lengths = [sum(w << b for w, b in zip(widths, of_tier, strict=True)) for of_tier in bits]
    books = [
        torch.randint(-127, 128, (n,), generator=generator).float() if whole else torch.randn(n, generator=generator)
        for n in lengths
    ]
    return mgqe.CompactTable.from_mixed_codes(
        TIERS[tiers], codes, books, [0, 1], widths, bits, padding_idx, "int8" if whole else "float32",
        mean=torch.randn(D, generator=generator), matrix=torch.randn(sum(widths), D, generator=generator) / 50,
        matrix_dtype=matrix_dtype,
    )  # fmt: skip


def linear(inputs=D, bias=True):
    torch.manual_seed(1)
    return nn.Linear(inputs, 3, bias)


def expected(layer, vectors, start=0):
    """The linear layer's outputs in float64; other inputs are 0."""
    weight = layer.weight.detach().double()[:, start : start + D]
    outputs = vectors.double() @ weight.T
    return outputs if layer.bias is None else outputs + layer.bias.detach().double()


def agrees(outputs, exact):
    torch.testing.assert_close(outputs.detach().double(), exact, rtol=0, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("matrix_dtype", ["int8_columns", "int8", "float16", "float32"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_coordinates_times_the_matrix_are_the_rows(shape, matrix_dtype):
    for tiers, padding in (("in order", None), ("mapped", 7)):
        table = made(shape, matrix_dtype, padding, tiers)
        coordinates, matrix = table.coordinates()
        agrees(coordinates.to_dense() @ matrix, table.to_dense().double())
        without, shorter = table.coordinates(with_mean=False)
        rows = without.to_dense() @ shorter + table.snapshot.transform.mean
        if padding is not None:
            rows[padding] = 0
        agrees(rows, table.to_dense().double())
        coordinates.validate()
        assert not coordinates.is_turned
        assert all(a is b for a, b in zip(coordinates.snapshot.codes, table.snapshot.codes, strict=True))


def test_the_coordinates_of_whole_tables_worked_out_by_hand():
    tiers, ids = Tiers.from_sizes([3]), torch.arange(3)
    table = mgqe.CompactTable.from_mixed_codes(
        tiers, [torch.tensor([[0], [1], [1]])], [torch.tensor([10.0, -20.0, 30.0, 40.0])], [0], [2], [[1]], 2, "int8",
        mean=torch.tensor([3.0, 4.0]), matrix=torch.tensor([[0.0, 127.0], [127.0, 0.0]]), matrix_dtype="int8_columns",
    )  # fmt: skip
    coordinates, matrix = table.coordinates()
    assert matrix.shape == (16, 2)  # two coordinates, the mean, and numbers up to a multiple of 16
    assert torch.equal(matrix[:3], torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]]))
    first = torch.tensor([[1270.0, -2540.0, 5.0], [3810.0, 5080.0, 5.0], [0.0, 0.0, 0.0]])
    assert torch.equal(coordinates.lookup(ids), torch.nn.functional.pad(first, (0, 13)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_look_ups_agree(shape, padding, bias):
    layer, after = mgqe.CompactEmbedding(made(shape, padding_idx=padding)), linear(bias=bias)
    ids = torch.arange(N).view(4, -1)
    exact = expected(after, layer(ids))
    folded = mgqe.fold_matrix(layer, after)
    assert type(folded) is mgqe.CompactEmbedding
    assert folded.padding_idx == padding
    assert after.in_features == folded.embedding_dim == after.weight.shape[1]
    agrees(after(folded(ids)), exact)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_bags_agree(mode, padding, weighted):
    if weighted and mode == "mean":
        pytest.skip("weights are for sums")
    layer = mgqe.CompactEmbeddingBag(made(padding_idx=padding), mode=mode, include_last_offset=True)
    after = linear()
    ids = torch.tensor([5, 5, 1, 2, 119, 5, 60, 60])
    offsets = torch.tensor([0, 2, 2, 5, 8])  # the first is padding alone where there is some, the second is empty
    weights = torch.tensor([0.5, -1, 2, 0, 1, 3, 0.25, 1]) if weighted else None
    exact = expected(after, layer(ids, offsets, weights))
    folded = mgqe.fold_matrix(layer, after)
    assert (type(folded), folded.mode) == (mgqe.CompactEmbeddingBag, mode)
    agrees(after(folded(ids, offsets, weights)), exact)


def test_some_columns_of_a_linear_layer():
    layer, after = mgqe.CompactEmbedding(made()), linear(2 + D + 3)
    other = torch.randn(4, 2), torch.randn(4, 3)
    ids = torch.tensor([0, 7, 50, 119])
    before = after(torch.cat([other[0], layer(ids), other[1]], 1))
    folded = mgqe.fold_matrix(layer, after, start=2)
    agrees(after(torch.cat([other[0], folded(ids), other[1]], 1)), before.detach().double())


def test_unknown_ids_agree_and_a_fallback_that_is_no_mixture_is_refused():
    table = made("few").with_fallback(made("few").lookup(torch.arange(9)).mean(0))
    layer, after = mgqe.CompactEmbedding(table), linear()
    ids = torch.tensor([-1, 3, N + 4])
    exact = expected(after, layer(ids))
    agrees(after(mgqe.fold_matrix(layer, after)(ids)), exact)
    odd = mgqe.CompactEmbedding(made("few").with_fallback(torch.randn(D)))
    with pytest.raises(ValueError, match="fallback"):
        mgqe.fold_matrix(odd, linear())


def test_appended_ids_agree_and_the_file_is_of_the_usual_format(tmp_path):
    table = made(padding_idx=0)
    table.append(torch.randn(4, D))
    coordinates, matrix = table.coordinates()
    agrees(coordinates.to_dense() @ matrix, table.to_dense().double())
    mgqe.save(coordinates, tmp_path / "table.safetensors")
    assert torch.equal(mgqe.load(tmp_path / "table.safetensors").to_dense(), coordinates.to_dense())


def test_half_precision_and_weights_that_do_not_train():
    layer, after = mgqe.CompactEmbedding(made(), dtype=torch.float16), linear().half().requires_grad_(False)
    exact = expected(after.float(), layer(torch.arange(N)).float())
    after.half()
    folded = mgqe.fold_matrix(layer, after)
    assert (after.weight.dtype, after.weight.requires_grad) == (torch.float16, False)
    assert folded.dtype == torch.float16
    atol = 5e-3 * float(exact.abs().max())
    torch.testing.assert_close(after(folded(torch.arange(N))).double(), exact, rtol=0, atol=atol)


def test_tables_without_a_matrix_are_left():
    even = mgqe.DPQEmbedding(N, D, num_subspaces=2, num_centroids=4).freeze()
    layer, after = mgqe.CompactEmbedding(even), linear()
    weight = after.weight
    assert mgqe.fold_matrix(layer, after) is layer
    assert after.weight is weight
    with pytest.raises(ValueError, match="not multiplied with a matrix"):
        even.coordinates()


def test_what_cannot_be_folded_is_refused_and_nothing_changes():
    after = linear()
    weight = after.weight
    with pytest.raises(ValueError, match=r"columns 1 to 6 .* has 6"):
        mgqe.fold_matrix(mgqe.CompactEmbedding(made()), after, start=1)
    with pytest.raises(ValueError, match='must be "sum" or "mean"'):
        mgqe.fold_matrix(mgqe.CompactEmbeddingBag(made(), mode="max"), after)
    with pytest.raises(TypeError, match="freeze the model first"):
        mgqe.fold_matrix(mgqe.DPQEmbedding(N, D), after)
    with pytest.raises(TypeError, match="got ReLU"):
        mgqe.fold_matrix(mgqe.CompactEmbedding(made()), nn.ReLU())
    normed = nn.utils.parametrizations.weight_norm(linear())
    with pytest.raises(ValueError, match="parametrization"):
        mgqe.fold_matrix(mgqe.CompactEmbedding(made()), normed)
    assert after.weight is weight


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.item = mgqe.MGQEmbedding(300, 8, counts=torch.arange(300), budget="20%")
        self.tower = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
        self.both = nn.Linear(16, 2)

    def forward(self, ids):
        return self.tower(self.item(ids))


def test_freezing_folds_where_the_layer_is_known():
    plain, ids = Model(), torch.arange(300)
    plain.item.start_quantizing()
    folded = copy.deepcopy(plain)
    mgqe.freeze_(plain)
    tables = mgqe.freeze_(folded, fold={"item": "tower.0"})
    assert plain.item.table.is_turned
    assert not tables["item"].is_turned
    torch.testing.assert_close(folded(ids), plain(ids), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fold", "match"),
    [
        ({"itm": "tower.0"}, "'itm' \\(did you mean 'item'"),
        ({"item": "tower.9"}, "'tower.9' \\(did you mean 'tower"),
        ({"item": "both"}, "takes 16 numbers, not the 8"),
        ({"item": "tower.1"}, "item: .*got ReLU"),
    ],
)
def test_freezing_refuses_what_cannot_be_folded(fold, match):
    model = Model()
    with pytest.raises((TypeError, ValueError), match=match):
        mgqe.freeze_(model, fold=fold)
    assert isinstance(model.item, mgqe.MGQEmbedding)
    assert model.tower[0].in_features == 8


def test_freezing_refuses_shared_layers():
    model = Model()
    model.user = model.item
    with pytest.raises(ValueError, match="shared"):
        mgqe.freeze_(model, fold={"item": "tower.0"})
