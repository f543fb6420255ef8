"""Collections: the user's ids in and out, one folder, and what does not belong together is refused."""

from __future__ import annotations

import json

import numpy as np
import polars
import pytest
import torch

import mgqe
from mgqe import Collection
from mgqe.files.checksums import json_checksum

N, D = 600, 16
NAMES = [f"item-{i}" for i in range(N)]


@pytest.fixture(scope="module")
def table():
    rows = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    return mgqe.compress_table(rows, "25%")


@pytest.fixture(params=["text", "integers", "numbered"])
def items(request, table):
    ids = {"text": NAMES, "integers": np.arange(N) * 7 + 100, "numbered": None}[request.param]
    return Collection(table, ids)


def name(items: Collection, row: int):
    return row if items.ids is None else items.ids.ids([row])[0]


def test_lookups_are_those_of_the_rows(items, table):
    rows = torch.tensor([5, 0, N - 1])
    ids = [name(items, int(row)) for row in rows]
    assert torch.equal(items.lookup(ids), table.lookup(rows))
    assert (
        items.lookup([ids[:1], ids[1:2]] if items.ids is None or items.ids.kind != "string" else ids[:2]).shape[-1] == D
    )
    assert ids[0] in items
    assert len(items) == N


def test_topk_returns_ids_and_takes_them(items, table):
    queries = torch.randn(3, D, generator=torch.Generator().manual_seed(1))
    scores, rows = table.topk(queries, 4)
    hits = items.topk(queries, 4)
    assert torch.equal(hits.scores, scores)
    assert hits.ids == [[name(items, row) for row in of_query] for of_query in rows.tolist()]
    one = items.topk(queries[0].tolist(), 4)
    assert one.ids == hits.ids[0]
    firsts = [of_query[0] for of_query in hits.ids]
    assert all(firsts[0] not in of_query for of_query in items.topk(queries, 4, exclude=firsts).ids)
    each = items.topk(queries, 4, exclude=[[first] for first in firsts])
    assert [of_query[0] for of_query in each.ids] == [of_query[1] for of_query in hits.ids]
    kept = items.topk(queries, 3, candidates=firsts[:2])
    assert all(set(of_query) == {*firsts[:2], None} for of_query in kept.ids)
    assert items.topk(queries[0], 2, exclude=[]).ids == hits.ids[0][:2]


def test_neighbours_leave_the_id_itself_out(items, table):
    hits = items.neighbours(name(items, 5), 3)
    rows = table.topk(table.lookup(torch.tensor(5)), 4, score="cosine").ids
    assert hits.ids == [name(items, row) for row in rows.tolist() if row != 5][:3]


def test_unknown_ids_follow_the_rule(table):
    items = Collection(table, NAMES)
    assert "nothing" not in items
    assert 3 not in items
    with pytest.raises(KeyError, match="'nothing'"):
        items.lookup(["item-1", "nothing"])
    vectors = items.lookup(["item-1", "nothing"], unknown="zeros")
    assert torch.equal(vectors[0], table.lookup(torch.tensor(1)))
    assert not vectors[1].any()
    with pytest.raises(ValueError, match="needs a table with one"):
        items.lookup(["nothing"], unknown="fallback")
    fallback = torch.arange(D).float()
    known = Collection(table.with_fallback(fallback), NAMES)
    assert torch.equal(known.lookup(["nothing"], unknown="fallback")[0], fallback)
    assert items.topk(fallback, 2, exclude=["nothing"]).ids == items.topk(fallback, 2).ids
    with pytest.raises(ValueError, match="error, zeros, fallback"):
        items.lookup(["item-1"], unknown="skip")
    with pytest.raises(KeyError, match=f"row {N}: rows are 0 to {N - 1}"):
        Collection(table).lookup([N])


def test_a_folder_comes_back_and_is_replaced(items, tmp_path):
    folder = tmp_path / "items"
    nbytes = items.save(folder)
    assert nbytes == sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".lock")
    loaded = Collection.load(folder)
    query = torch.ones(D)
    assert loaded.topk(query, 5).ids == items.topk(query, 5).ids
    assert loaded.table.equal(items.table)
    before = sorted(path.name for path in folder.iterdir())
    loaded.save(folder)  # over the files that it is mapped from
    assert len(list(folder.iterdir())) == len(before)
    assert Collection.load(folder, verify=True).topk(query, 5).ids == items.topk(query, 5).ids


def test_appended_ids_are_found_and_saved(items, tmp_path):
    grown = Collection(mgqe.compress_table(items.table.to_dense(), "25%"), items.ids)
    vectors = 3 * torch.eye(D)[:2]
    ids = None if items.ids is None else (["new-a", "new-b"] if items.ids.kind == "string" else [-5, -6])
    grown.append(ids, vectors)
    expected = ids or [N, N + 1]
    assert len(grown) == N + 2
    assert grown.lookup(expected).shape == (2, D)
    grown.save(tmp_path / "grown")
    assert torch.equal(Collection.load(tmp_path / "grown").lookup(expected), grown.lookup(expected))
    if ids is not None:
        with pytest.raises(ValueError, match="there already"):
            grown.append(ids, vectors)
        with pytest.raises(ValueError, match="2 ids and 1 vectors"):
            grown.append(["x", "y"] if grown.ids.kind == "string" else [-7, -8], vectors[:1])
        assert len(grown) == N + 2
    else:
        with pytest.raises(ValueError, match="no ids of its own"):
            grown.append(["x", "y"], vectors)


def test_appended_ids_leave_the_counts_of_the_others(table):
    ids = mgqe.IdMap.from_log(polars.DataFrame({"item": ["a"] * 5 + ["b"] * 2}), "item").extend(["c", "d"])
    assert ids.counts.tolist() == [5, 2, 1, 1]
    assert (ids.interactions, ids.distinct) == (9, 4)
    assert ids.rows(["d", "a"]).tolist() == [3, 0]
    assert ids.ids([]) == []
    with pytest.raises(ValueError, match="1 ids are there already, such as 'b'"):
        ids.extend(["e", "b"])


def test_only_single_ids_are_in_a_collection(items):
    first = 0 if items.ids is None else items.ids.ids([0])[0]
    assert first in items
    for other in ([first], [[first]], None, 1.5, "no such id"):
        assert other not in items


def test_queries_are_weighted_and_the_folder_keeps_the_weights(table, tmp_path):
    weight = torch.linspace(-1, 2, D)
    items = Collection(table, NAMES, query_weight=weight)
    query = torch.randn(D, generator=torch.Generator().manual_seed(2))
    items.save(tmp_path / "items")
    for each in (items, Collection.load(tmp_path / "items")):
        assert torch.equal(each.query_weight, weight)
        assert each.topk(query, 5).ids == Collection(table, NAMES).topk(query * weight, 5).ids
        assert each.topk(query, 5, score="cosine").ids == Collection(table, NAMES).topk(query, 5, score="cosine").ids
    for wrong in (weight[1:], torch.full((D,), torch.inf), weight[None]):
        with pytest.raises(ValueError, match="query_weight must be 16 finite floats"):
            Collection(table, NAMES, query_weight=wrong)


def test_what_does_not_belong_together(table):
    with pytest.raises(ValueError, match="2 ids for a table of 600 rows"):
        Collection(table, ["a", "b"])
    with pytest.raises(TypeError, match="expected a frozen table, got Linear"):
        Collection(torch.nn.Linear(2, 2))


def test_a_table_is_not_looked_for_in_a_collection(items, tmp_path):
    items.save(tmp_path / "items")
    with pytest.raises(IsADirectoryError, match=r"a collection: read it with mgqe\.Collection\.load\(folder\)"):
        mgqe.load(tmp_path / "items")


def test_damaged_and_foreign_folders(table, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Collection.load(tmp_path / "nothing")
    with pytest.raises(mgqe.ArtifactError, match="holds no collection"):
        Collection.load(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match=r"other files \(mine\.txt\)"):
        Collection(table).save(tmp_path)
    folder = tmp_path / "items"
    Collection(table, NAMES).save(folder)
    manifest = folder / "mgqe-collection.json"
    content = json.loads(manifest.read_text())
    ids = folder / content["ids"]["file"]
    kept = ids.read_bytes()
    mgqe.IdMap.from_ids([f"other-{i}" for i in range(N)]).save(ids)
    with pytest.raises(mgqe.ArtifactError, match=r"not the file that mgqe-collection\.json was saved"):
        Collection.load(folder)
    ids.unlink()
    with pytest.raises(mgqe.ArtifactError, match="missing"):
        Collection.load(folder)
    ids.write_bytes(kept)
    assert len(Collection.load(folder)) == N
    for changed, text in (
        ({**content, "version": 2}, "version 2"),
        ({**content, "extra": 1}, "checksum"),
        ({"format": "x"}, "not the manifest"),
        ({**content, "query_weight": "0000803f"}, "1 weights for 16 coordinates"),
        ({**content, "query_weight": [1.0]}, "holds no finite float32 in hexadecimal digits"),
        ({**content, "query_weight": "0000807f" * 16}, "holds no finite float32"),
        ({**content, "query_weight": "00803f"}, "holds no finite float32"),
    ):
        if "query_weight" in changed:
            changed["checksum"] = json_checksum(changed)
        manifest.write_text(json.dumps(changed))
        with pytest.raises(mgqe.ArtifactError, match=text):
            Collection.load(folder)
    manifest.write_text("{")
    with pytest.raises(mgqe.ArtifactError, match="cannot be read as JSON"):
        Collection.load(folder)
