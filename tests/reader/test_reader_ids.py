"""mgqe_reader answers in the user's own ids as mgqe does, from the same id maps and collections."""

import json

import numpy as np
import pytest
import torch
from paths import GOLDEN

import mgqe
import mgqe_reader
from mgqe.files.checksums import json_checksum

MAPS = sorted(GOLDEN.rglob("idmap/*.safetensors"))


def vectors(n=50, d=8):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("path", MAPS, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_golden_id_maps(path):
    mine, theirs = mgqe_reader.IdMap.load(path), mgqe.IdMap.load(path)
    assert (len(mine), mine.kind) == (len(theirs), theirs.kind)
    rows = np.arange(len(mine))
    unknown = {"string": ["?", "", "é" * 99], "binary": [b"?" * 8, b"?" * 9]}.get(mine.kind, [1, 2**40])
    np.testing.assert_array_equal(mine.rows(unknown, unknown=-1), theirs.rows(unknown, unknown=-1))
    if path.name == "hashes.safetensors":
        with pytest.raises(mgqe_reader.ArtifactError, match="holds hashes instead of ids"):
            mine.ids([0])
        words = [f"item {i}" * (i % 4) + "é" * (i == 5) for i in range(100)]
        np.testing.assert_array_equal(mine.rows(words), theirs.rows(words))
        return
    names = mine.ids(rows)
    assert list(names) == list(theirs.ids(rows))
    np.testing.assert_array_equal(mine.rows(names), rows)
    np.testing.assert_array_equal(mine.rows(next(iter(names))), 0)


@pytest.mark.parametrize(
    "ids",
    [
        [f"item-{i}" for i in range(50)],
        list(range(1000, 1050)),
        [bytes([i, 0, 255]) for i in range(50)],
        [2**64 - 1 - i for i in range(50)],
        None,
    ],
    ids=["strings", "integers", "binaries", "unsigned", "rows"],
)
def test_collections(ids, tmp_path):
    theirs = mgqe.Collection(mgqe.compress_table(vectors(), "60%"), ids)
    theirs.save(tmp_path / "items")
    mine = mgqe_reader.Collection.load(tmp_path / "items")
    names = list(range(50)) if ids is None else ids
    assert len(mine) == 50
    assert names[3] in mine
    assert (None if ids is None else "?") not in mine
    same = mine.lookup(names[:7]), theirs.lookup(names[:7]).numpy()
    assert same[0].tobytes() == same[1].tobytes()
    for options in ({}, {"exclude": names[:5]}, {"candidates": [names[:9], names[4:30]], "score": "cosine"}):
        queries = vectors(2)
        scores, found = mine.topk(queries.numpy(), 6, **options)
        expected = theirs.topk(queries, 6, **options)
        assert found == expected.ids
        assert scores.tobytes() == expected.scores.numpy().tobytes()
    assert mine.neighbours(names[0], 3).ids == theirs.neighbours(names[0], 3).ids
    few = mine.topk(vectors(1)[0].numpy(), 4, candidates=names[:2])
    assert few.ids[2:] == [None, None]


@pytest.fixture
def items(tmp_path):
    folder = tmp_path / "items"
    mgqe.Collection(mgqe.compress_table(vectors(), "60%"), [f"item-{i}" for i in range(50)]).save(folder)
    return folder


def test_the_weights_of_queries(tmp_path):
    weight = np.linspace(0.5, 2, vectors().shape[1], dtype=np.float32)
    theirs = mgqe.Collection(mgqe.compress_table(vectors(), "60%"), query_weight=weight)
    theirs.save(tmp_path / "items")
    mine = mgqe_reader.Collection.load(tmp_path / "items")
    assert np.array_equal(mine.query_weight, weight)
    queries = np.asarray(vectors(), dtype=np.float32)[:5]
    for score in ("dot", "cosine"):
        found, expected = mine.topk(queries, 7, score=score), theirs.topk(queries, 7, score=score)
        assert found.ids == expected.ids
        assert np.array_equal(found.scores, expected.scores.numpy())
    manifest = tmp_path / "items" / "mgqe-collection.json"
    content = json.loads(manifest.read_text())
    for digits, text in (("0000803f", "1 weights for"), ("00g0803f", "holds no finite"), ("0000807f", "no finite")):
        changed = {**content, "query_weight": digits}
        manifest.write_text(json.dumps({**changed, "checksum": json_checksum(changed)}))
        with pytest.raises(mgqe_reader.ArtifactError, match=text):
            mgqe_reader.Collection.load(tmp_path / "items")


def test_unknown_ids(items):
    mine = mgqe_reader.Collection.load(items)
    with pytest.raises(KeyError, match="the map does not know 2 of the ids: 'a', 'b'"):
        mine.lookup(["a", "item-1", "b"])
    assert not mine.lookup(["a"], unknown="zeros").any()
    with pytest.raises(ValueError, match="unknown must be one of"):
        mine.lookup(["a"], unknown="fallback")
    with pytest.raises(TypeError, match="the map's ids are of kind string, got 7, int"):
        mine.lookup([7])
    assert "item-1" not in mine.topk(np.ones(8, np.float32), 49, exclude=["a", "item-1"]).ids


def test_damaged_and_foreign_collections_are_refused(items, tmp_path):
    manifest = items / "mgqe-collection.json"
    text = manifest.read_text()
    names = {part: entry["file"] for part, entry in json.loads(text).items() if part in ("table", "ids")}
    for wrong, message in (
        (text.replace('"table.', '"tablE.', 1), "its checksum is another one"),
        (text.replace('"version": 1', '"version": 2').replace('"version":1', '"version":2'), "version 1 alone"),
        (text.replace("mgqe collection", "other"), "not the manifest of a collection"),
        (text[:-5], "not JSON"),
    ):
        manifest.write_text(wrong)
        with pytest.raises(mgqe_reader.ArtifactError, match=message):
            mgqe_reader.Collection.load(items)
    manifest.write_text(text)
    other = tmp_path / "other"
    mgqe.Collection(mgqe.compress_table(vectors(40), "90%"), list(range(40))).save(other)
    (ids,) = other.glob("ids.*")
    content = (items / names["ids"]).read_bytes()
    (items / names["ids"]).write_bytes(ids.read_bytes())
    with pytest.raises(mgqe_reader.ArtifactError, match="is not the file that the manifest was saved with"):
        mgqe_reader.Collection.load(items)
    (items / names["ids"]).write_bytes(content)
    (items / names["table"]).unlink()
    with pytest.raises(mgqe_reader.ArtifactError, match="cannot be read, which the manifest names"):
        mgqe_reader.load(items)


def test_files_of_another_kind_name_what_reads_them(items):
    with pytest.raises(mgqe_reader.ArtifactError, match="an id map: open it with"):
        mgqe_reader.load(next(items.glob("ids.*")))
    with pytest.raises(mgqe_reader.ArtifactError, match="no id map"):
        mgqe_reader.IdMap.load(next(items.glob("table.*")))
