"""Errors name the argument, the layer and the id that came, and a remedy that there is in that place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mgqe
from mgqe import baselines
from mgqe.table import sharded as shards

N, DIM = 40, 8
ONES = torch.ones(2, DIM)


@pytest.fixture(scope="module")
def table() -> mgqe.CompactTable:
    torch.manual_seed(0)
    return mgqe.MGQEmbedding(N, DIM, counts=torch.arange(N, 0, -1)).freeze()


@pytest.mark.parametrize("name", ["exclude", "candidates"])
@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (torch.tensor([1, 99]), "holds id 99, but the table has the ids 0 to 39: leave out"),
        (torch.tensor([-1, 2]), "holds id -1, but .* -1 stands for no id in a tensor of shape"),
        (torch.tensor([[1, -1], [2, 99]]), r"holds id 99 \(of query 1\), but"),
        ([torch.tensor([40]), torch.tensor([2])], r"holds id 40 \(of query 0\), but"),
    ],
)
def test_an_unknown_id_of_topk_is_to_be_left_out(table: Any, name: str, ids: Any, named: str) -> None:
    for search in (table, table.with_fallback(torch.ones(DIM))):
        with pytest.raises(IndexError, match=f"^{name} {named}") as caught:
            search.topk(ONES, 3, **{name: ids})
        assert "fallback" not in str(caught.value)


def test_a_fallback_is_proposed_where_there_is_one_alone(table: Any) -> None:
    unknown = torch.tensor([[3, 99]])
    for call in (table.lookup, table.bag):
        with pytest.raises(IndexError, match=r"id 99 is out of range .*with_fallback"):
            call(unknown)
    layer = mgqe.DPQEmbedding(N, DIM, warmup_steps=0)
    full = baselines.FullTable(torch.ones(N, DIM))
    for call in (layer, layer.eval(), full.lookup, full.bag, baselines.HashEmbedding(N, DIM), table.codes):
        with pytest.raises(IndexError, match="id 99 is out of range") as caught:
            call(unknown)
        assert "fallback" not in str(caught.value)


@pytest.mark.parametrize("ids", [np.array([1, 2, 3]), [[1, 2], [3]], [np.array([1, 2]), np.array([3])]], ids=str)
def test_topk_takes_arrays_of_ids_and_lists_per_query(table: Any, ids: Any) -> None:
    per_query = isinstance(ids, list)
    tensors = [torch.tensor(np.asarray(one)) for one in ids] if per_query else torch.tensor(ids)
    for name in ("exclude", "candidates"):
        found, expected = table.topk(ONES, 3, **{name: ids}), table.topk(ONES, 3, **{name: tensors})
        assert torch.equal(found.ids, expected.ids)
    assert table.topk(ONES, 2, exclude=np.ones(N, dtype=bool)).ids.tolist() == [[-1, -1], [-1, -1]]


def test_one_flat_list_could_mean_either_and_is_refused(table: Any) -> None:
    with pytest.raises(TypeError, match=r"^exclude must be a tensor .*, got \[1, 2\]: use torch\.tensor"):
        table.topk(ONES, 3, exclude=[1, 2])


class Shop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.news, self.item = nn.Embedding(2000, DIM), nn.Embedding(2000, DIM)


def damaged() -> Shop:
    model = Shop()
    mgqe.compress_(model)
    with torch.no_grad():
        model.item.raw_weight[17, 3] = float("nan")
    return model


@pytest.mark.parametrize("call", [mgqe.freeze_, mgqe.start_quantizing], ids=["freeze_", "start_quantizing"])
def test_a_nan_row_names_the_layers_path(call: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(ValueError, match=r"^item: row 17 of the embedding weight holds NaN or infinity"):
        call(damaged())


def test_a_nan_row_names_the_layer_that_is_frozen_alone() -> None:
    with pytest.raises(ValueError, match=r"row 17 of .* \(DPQEmbedding of 2000 x 8\)"):
        damaged().item.freeze()
    with pytest.raises(ValueError, match=r"row 17 of .* \(DPQEmbedding of 2000 x 8\)"):
        mgqe.start_quantizing(damaged().item)


@pytest.mark.parametrize("name", [n for n in baselines.__all__ if n.endswith("Embedding")])
def test_a_nan_in_a_baseline_names_class_parameter_and_place(name: str) -> None:
    layer = getattr(baselines, name)(N, DIM)
    part, values = next(iter(layer.named_parameters()))
    with torch.no_grad():
        values[1] = float("nan")
    with pytest.raises(ValueError, match=rf"{part}\[1\] of the {name} of 40 x 8 holds NaN or infinity"):
        layer.freeze()


def test_nan_centroids_name_the_codebook() -> None:
    layer = mgqe.DPQEmbedding(N, DIM)
    mgqe.start_quantizing(layer)
    with torch.no_grad():
        next(layer.quantizer.parameters())[0] = float("inf")
    with pytest.raises(ValueError, match="codebook 0 holds NaN or infinity: if it was trained"):
        layer.freeze()


MISTAKES: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "a fallback of another size": (
        lambda t: t.with_fallback(torch.ones(3)), ValueError, r"fallback must have shape \(8,\), got \(3,\)",
    ),
    "a fallback of another type": (
        lambda t: t.with_fallback(torch.ones(DIM).double()), TypeError, r"the fallback must be .*, got torch\.float64",
    ),
    "a fallback that is NaN": (
        lambda t: t.with_fallback(torch.full((DIM,), torch.nan)), ValueError, "the fallback holds NaN or infinity$",
    ),
    "queries of text": (lambda t: t.topk(["a"], 1), TypeError, "queries must be floats: .* got list"),
    "a model to save": (lambda t: mgqe.save(Shop(), "x"), TypeError, r"got Shop: a model is written by"),
    "a layer to save": (
        lambda t: mgqe.save(mgqe.DPQEmbedding(N, DIM), "x"), TypeError, r"got DPQEmbedding: save what its freeze\(\)",
    ),
    "a module to save": (lambda t: mgqe.save(mgqe.CompactEmbedding(t), "x"), TypeError, r"save its \.table"),
    "something else to save": (lambda t: mgqe.save({}, "x"), TypeError, r"got dict: a layer's freeze\(\) makes one"),
    "a baseline to freeze to": (
        lambda t: mgqe.freeze_to(baselines.FullEmbedding(N, DIM), "x"), TypeError, r"freeze\(\) of other layers",
    ),
    "no model to compress": (lambda t: mgqe.compress_(nn.Linear), TypeError, "expected a model, got type"),
    "no model to freeze": (lambda t: mgqe.freeze_(t), TypeError, "expected a model, got CompactTable"),
    "a mapping as config": (lambda t: mgqe.compress_(Shop(), {}), TypeError, r"must be a CompressConfig, got dict"),
    "a bag as the model": (
        lambda t: mgqe.compress_(nn.EmbeddingBag(N, DIM)), ValueError, r"use mgqe\.MGQEmbeddingBag\.from_pretrained",
    ),
    "rows that are no tensor": (
        lambda t: mgqe.DPQEmbedding.from_pretrained([[1.0]]), TypeError, "got list: use torch.as_tensor",
    ),
    "too many centroids for one tier": (
        lambda t: mgqe.DPQEmbedding(10, DIM, num_centroids=64), ValueError, "has 10 ids .*: give it at most 10$",
    ),
    "too many centroids for a tier": (
        lambda t: mgqe.MGQEmbedding(N, DIM, tiers=(4, 36), num_centroids=64), ValueError, "make the tier larger",
    ),
    "two numbers for one tier": (
        lambda t: baselines.PQEmbedding(N, DIM, num_centroids=(8, 4)), ValueError, "but there is 1 tier:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_what_helps(table: Any, name: str) -> None:
    call, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        call(table)


def test_a_file_that_is_no_table_says_who_reads_it(table: Any, tmp_path: Path) -> None:
    mgqe.save(table, tmp_path / "t")
    mgqe.append(tmp_path / "t", torch.ones(1, DIM))
    (segment,) = tmp_path.glob("t.append-*-000001")
    with pytest.raises(mgqe.ArtifactError, match="holds ids that were appended to another file"):
        mgqe.load(segment)
    model = Shop()
    mgqe.compress_(model)
    mgqe.freeze_(model)
    mgqe.save_model(model, tmp_path / "model")
    with pytest.raises(IsADirectoryError, match=r"a whole model: read it with mgqe\.load_model"):
        mgqe.load(tmp_path / "model")
    tensors, config = table.to_tensors()
    name, codes = shards.new_set(), [tensors.pop(f"codes.{g}") for g in range(2)]
    (tmp_path / "sharded").mkdir()
    shapes = {f"codes.{g}": (c.dtype, tuple(c.shape)) for g, c in enumerate(codes)}
    shards.write_shard(tmp_path / "sharded", name, 0, shapes, codes)
    with shards.prepared_index(tmp_path / "sharded", name, tensors, config, [[len(c) for c in codes]]) as (made, _):
        shards.publish_index(tmp_path / "sharded", made)
    with pytest.raises(mgqe.ArtifactError, match="load the folder that it is in"):
        mgqe.load(next((tmp_path / "sharded").glob("shard-*")))
    with pytest.raises(mgqe.ArtifactError, match="'compact-sharded': load its folder, append to the table in memory"):
        mgqe.append(tmp_path / "sharded" / "table.safetensors", torch.ones(1, DIM))


def test_an_id_map_says_who_reads_it_and_what_unknown_is_for(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    (tmp_path / "log.csv").write_text("item\n7\n7\n9\n")
    known = mgqe.IdMap.from_log(str(tmp_path / "log.csv"), "item")
    known.save(tmp_path / "map")
    with pytest.raises(mgqe.ArtifactError, match=r"holds an id map: read it with mgqe\.IdMap\.load"):
        mgqe.load(tmp_path / "map")
    with pytest.raises(TypeError, match=r"got IdMap: use its save\(\)"):
        mgqe.save(known, tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match=r"does not know 1 of the ids: 8\. Leave them out, or say with unknown="):
        known.rows([7, 8])
    with pytest.raises(IndexError, match="row 2 is out of range: valid rows are 0 to 1"):
        known.ids([2])
