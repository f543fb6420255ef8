"""read_vectors: every format gives the same rows and ids, and what cannot be read is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mgqe.vectors import frames
from mgqe.vectors.columns import choose_columns
from mgqe.vectors.read import read_vectors

ROWS = np.array([[1.5, -2.0, 0.25], [0.0, 3.0, 1e-3], [4.0, 5.0, 6.0]], np.float32)
WORDS = ["hat-3", "größe", "shoe-17"]


def npy(folder: Path) -> Path:
    np.save(folder / "rows.npy", ROWS)
    return folder / "rows.npy"


def npz(folder: Path) -> Path:
    np.savez(folder / "rows.npz", rows=ROWS, ids=np.array(WORDS), other=np.arange(3))
    return folder / "rows.npz"


def safetensors(folder: Path) -> Path:
    save_file({"item.weight": torch.from_numpy(ROWS), "bias": torch.zeros(3)}, folder / "rows.safetensors")
    return folder / "rows.safetensors"


def state_dict(folder: Path) -> Path:
    torch.save(
        {"state": {"item.weight": torch.from_numpy(ROWS), "head.weight": torch.ones(1, 3)}, "epoch": 3}, folder / "a.pt"
    )
    return folder / "a.pt"


def parquet(folder: Path) -> Path:
    frame().write_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def parquet_of_columns(folder: Path) -> Path:
    columns().write_parquet(folder / "columns.parquet")
    return folder / "columns.parquet"


def csv(folder: Path) -> Path:
    columns().write_csv(folder / "rows.csv")
    return folder / "rows.csv"


def csv_of_texts(folder: Path) -> Path:
    text = "".join(f'{word},"[{", ".join(map(str, row))}]"\n' for word, row in zip(WORDS, ROWS.tolist()))
    (folder / "texts.csv").write_text(f"id,embedding\n{text}", encoding="utf-8")
    return folder / "texts.csv"


def json_lines(folder: Path) -> Path:
    lines = [json.dumps({"id": word, "vector": row}) for word, row in zip(WORDS, ROWS.tolist())]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "rows.jsonl"


def word_text(folder: Path) -> Path:
    return _words(folder / "rows.vec", "3 3\n")


def glove(folder: Path) -> Path:
    return _words(folder / "glove.txt", "")


def _words(path: Path, header: str) -> Path:
    lines = "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in zip(WORDS, ROWS.tolist()))
    path.write_text(header + lines, encoding="utf-8")
    return path


def word_binary(folder: Path) -> Path:
    entries = (word.encode() + b" " + struct.pack("<3f", *row) + b"\n" for word, row in zip(WORDS, ROWS.tolist()))
    (folder / "rows.bin").write_bytes(b"3 3\n" + b"".join(entries))
    return folder / "rows.bin"


def model2vec(folder: Path) -> Path:
    save_file({"embeddings": torch.from_numpy(ROWS)}, folder / "model.safetensors")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    return folder


def transformers_shards(folder: Path) -> Path:
    save_file({"model.embed_tokens.weight": torch.from_numpy(ROWS)}, folder / "model-1.safetensors")
    save_file({"lm_head.weight": torch.ones(3, 3)}, folder / "model-2.safetensors")
    index = {"model.embed_tokens.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def frame():
    pl = pytest.importorskip("polars")
    return pl.DataFrame({"item": WORDS, "vector": ROWS.tolist(), "price": [1.0, 2.0, 3.0]})


def columns():
    pl = pytest.importorskip("polars")
    return pl.DataFrame({"item": WORDS, **{f"d{j}": ROWS[:, j] for j in range(3)}})


WITH_IDS = [
    npz, parquet, parquet_of_columns, csv, csv_of_texts, json_lines, word_text, glove, word_binary, model2vec,
]  # fmt: skip


@pytest.mark.parametrize(
    "write", [*WITH_IDS, npy, safetensors, state_dict, transformers_shards], ids=lambda f: f.__name__
)
def test_every_format_gives_the_same(write, tmp_path):
    options = {"ids": "item"} if write is parquet else {}
    read = read_vectors(write(tmp_path), **options)
    assert np.array_equal(np.asarray(read.rows), ROWS)
    assert (read.ids is not None) == (write in WITH_IDS)
    if read.ids is not None:
        assert list(read.ids) == WORDS


def test_a_matrix_is_mapped(tmp_path):
    assert isinstance(read_vectors(npy(tmp_path)).rows, np.memmap)


def test_tensors_and_columns_are_named(tmp_path):
    assert read_vectors(state_dict(tmp_path), tensor="state.head.weight").rows.shape == (1, 3)
    assert read_vectors(safetensors(tmp_path)).name == "item.weight"
    pl = pytest.importorskip("polars")
    pl.DataFrame({"a": [1, 2], "b": [3, 4], "v": [[1.0], [2.0]], "w": [[5.0], [6.0]]}).write_parquet(
        tmp_path / "t.parquet"
    )
    read = read_vectors(tmp_path / "t.parquet", ids="b", vectors="w")
    assert read.rows.tolist() == [[5.0], [6.0]]
    assert read.ids.tolist() == [3, 4]


def written(name: str, content: bytes | str):
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return write


def pickled(folder: Path) -> Path:
    (folder / "a.pt").write_bytes(pickle.dumps({"rows": Path("x")}, protocol=2))
    return folder / "a.pt"


PICKLES = (".npy", ".npz", ".pt", ".bin")


class Harmful:
    """What a pickle of it does when it is loaded: make a folder."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def disguised(name: str):
    """A pickle under the name of another format."""
    return written(name, pickle.dumps(Harmful()))


def several(folder: Path) -> Path:
    save_file({"a": torch.ones(2, 2), "b": torch.ones(3, 2)}, folder / "s.safetensors")
    return folder / "s.safetensors"


def numpy_objects(folder: Path) -> Path:
    np.save(folder / "o.npy", np.array([{}, {}]), allow_pickle=True)
    return folder / "o.npy"


def outside(folder: Path) -> Path:
    index = {"weight_map": {"wte.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def uneven_parquet(folder):
    pl = pytest.importorskip("polars")
    pl.DataFrame({"id": [1, 2], "vector": [[1.5, 2.5], [1.5]]}).write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def folder_with(name, content):
    """A model's folder with one more file."""

    def write(folder):
        save_file({"model.embed_tokens.weight": torch.randn(2, 4)}, folder / "model.safetensors")
        (folder / name).write_text(json.dumps(content))
        return folder

    return write


def no_tensors(folder):
    torch.save({"epoch": 5, "model": {}}, folder / "x.pt")
    return folder / "x.pt"


def sparse(folder):
    torch.save({"item.weight": torch.eye(3).to_sparse()}, folder / "x.pt")
    return folder / "x.pt"


@pytest.mark.parametrize(
    ("write", "options", "text"),
    [
        (written("x.npy", b"\x93NUMPY"), {}, "x.npy: it cannot be read"),
        (written("x.npy", b"nothing"), {}, "it cannot be read as .npy: it does not begin as such files do"),
        (written("x.npz", b""), {}, "it cannot be read as .npz: it does not begin as such files do"),
        (written("x.npz", b"PK\3\4"), {}, "cannot be read as .npz"),
        (written("x.safetensors", b"123"), {}, "cannot be read as safetensors"),
        (written("x.pt", b"123"), {}, "cannot be read as a state dict"),
        (pickled, {}, "Python objects, which are not loaded"),
        (numpy_objects, {}, "Python objects, which are not loaded since that runs code: save an array of floats"),
        *((disguised(f"x{ending}"), {}, "Python objects, which are not loaded") for ending in PICKLES),
        (disguised("x.safetensors"), {}, "cannot be read as safetensors"),
        (several, {}, r"several matrices \(a 2 x 2, b 3 x 2\): name one with tensor="),
        (several, {"tensor": "c"}, "there is no tensor 'c': it holds a 2 x 2, b 3 x 2"),
        (npy, {"tensor": "a"}, "has no tensors to name"),
        (npy, {"ids": "a"}, "columns are named of tables alone"),
        (written("x.abc", b""), {}, "files .abc are not known"),
        (written("x.vec", "a 1 2\nb 1\n"), {}, "line 2 has 1 numbers, the first vector 2"),
        (written("x.vec", "a 1 2\nb 1 x\n"), {}, "line 2 holds text"),
        (written("x.vec", "3 2\na 1 2\nb 1 2\n"), {}, "says 3 vectors of 2 numbers, and it has 2"),
        (written("x.vec", ""), {}, "no word vectors"),
        (written("x.bin", b"2 3\na " + bytes(12) + b"b " + bytes(5)), {}, "ends in vector 1 of 2"),
        (written("x.csv", "id,vector\na,1 2\nb,1\n"), {}, "in line 3 has 1 numbers, the first one 2"),
        (written("x.csv", "id,vector\na,1 2\nb,1 z\n"), {}, "line 3 holds text"),
        (written("x.csv", 'id,vector\n"a\nb",1 2\nb,1 z\n'), {}, "row 1 holds text"),
        (written("x.csv", "id,u,v\na,1.5,2.5\nb,oops,2.5\n"), {}, "column 'u': line 3 holds text .*: 'oops'"),
        (written("x.csv", "id,u,v\na,1.5,2.5\n,1.5,2.5\n"), {}, "has no id in line 3: give every row one"),
        (written("x.csv", "id,u,v\na,1.5,2.5\nb,1.5,\n"), {}, "column 'v' has no number in line 3"),
        (written("x.csv", "a,b\nx,y\n"), {}, "no column holds vectors"),
        (written("x.csv", "a,1.5,2\nb,3.5,4.5\n"), {}, r"its first line holds numbers \(1.5\) instead of names: put"),
        (written("x.csv", "a,b,v\nx,y,1.5\n"), {}, "which of a, b holds the ids"),
        (written("x.csv", "id,v\nx,1.5\n"), {"ids": "z"}, "no column 'z': it has id, v"),
        (written("x.jsonl", '{"id": 1, "vector": [1, 2]}\n{"id": 2, "vector": [1]}\n'), {}, "in line 2 has 1 numbers"),
        (written("x.jsonl", '{"vector": [1, 2]}\n{"vector": [1, "z"]}\n'), {}, "line 2 holds text .*: 'z'"),
        (written("x.jsonl", '{"vector": [1, 2]}\n{"vector": [1, null]}\n'), {}, "line 2 lacks a number"),
        (written("x.jsonl", '{"vector": [1, 2]}\n{"vector": [1,\n'), {}, "line 2: expected one JSON object"),
        (written("x.json", '[{"vector": [1, 2]}]\n'), {}, "line 1: expected one JSON object"),
        (written("x.csv", "id,u,v\na,1.5,2.5\nb,1.5,2.5,3.5\n"), {}, "line 3 has 4 fields, the first line 3"),
        (written("x.csv", "id,u,v\na,1.5,2.5\nb,nan,2.5\n"), {}, "column 'u': line 3 holds text .*: 'nan'"),
        (uneven_parquet, {}, "the vector in row 1 has 1 numbers"),
        (written("x.parquet", b"PAR1"), {}, "cannot be read as .parquet"),
        (outside, {}, "a file outside the folder"),
        (folder_with("model.safetensors.index.json", {"weight_map": [1]}), {}, "has no weight_map from names of"),
        (folder_with("model.safetensors.index.json", {"weight_map": {"a": 3}}), {}, "has no weight_map from names of"),
        (
            folder_with("pytorch_model.bin.index.json", {"weight_map": {"wte.weight": "part-2.bin"}}),
            {},
            "names part-2.bin, which is not in the folder: download it too",
        ),
        (folder_with("tokenizer.json", {"model": []}), {}, "tokenizer.json has no vocabulary as tokenizers write it"),
        (folder_with("tokenizer.json", {"added_tokens": [{}]}), {}, "tokenizer.json has no vocabulary"),
        (folder_with("tokenizer.json", {"model": {"vocab": {"a": "b"}}}), {}, "tokenizer.json has no vocabulary"),
        (written("x.csv", "id,vector\n"), {}, "column 'vector' has no vectors: there is no row after the header"),
        (no_tensors, {}, "it holds no dense tensor: save a state dict"),
        (sparse, {}, "it holds no dense tensor"),
        (lambda folder: folder, {}, "holds no model"),
    ],
)
def test_what_cannot_be_read_is_refused(write, options, text, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path)
    if path.suffix in (".csv", ".jsonl", ".parquet"):
        pytest.importorskip("polars")
    with pytest.raises(ValueError, match=text):
        read_vectors(path, **options)
    assert not [each for each in recwarn if each.category is UserWarning]
    assert not (tmp_path / "harmed").exists()


def test_other_columns_are_left_out(tmp_path):
    pytest.importorskip("polars")
    (tmp_path / "a.csv").write_text("sku,title,u\n1,hat,1.5\nx2,shoe 7,2.5\n3,coat,3.5\n")
    read = read_vectors(tmp_path / "a.csv", ids="sku")
    assert read.rows.tolist() == [[1.5], [2.5], [3.5]]
    assert read.ids == ["1", "x2", "3"]
    assert (read.name, read.notes) == ("u", ("left out: title (the vectors are u)",))
    read = read_vectors(tmp_path / "a.csv", ids=False)  # they are in a file of their own
    assert (read.ids, read.notes) == (None, ("left out: sku, title (the vectors are u)",))


TYPES = {"f": "Float64", "i": "Int64", "t": "String"}


@pytest.mark.parametrize(
    ("table", "wanted", "ids", "dimensions", "left_out"),
    [
        ("id:i u:f v:i w:f", None, "id", "u v w", ""),  # all numbers of v happen to be whole
        ("id:i d0:i d1:f d2:i", None, "id", "d0 d1 d2", ""),  # those of d0 and d2
        ("id:i year:i u:f v:f", None, "id", "u v", "year"),  # neither between floats nor called like one
        ("2:i 0:f 1:i sku:t", None, "sku", "2 0 1", ""),
        ("u:f id:i v:f", None, "id", "u v", ""),
        ("u:f sku:i v:f", "sku", "sku", "u v", ""),
        ("u:f sku:i w:i v:f", "sku", "sku", "u w v", ""),
        ("u:f sku:t v:f title:t", "sku", "sku", "u v", "title"),
        ("u:f sku:t v:f", False, None, "u v", "sku"),
    ],
)
def test_dimensions_may_hold_whole_numbers(table, wanted, ids, dimensions, left_out):
    pl = pytest.importorskip("polars")
    columns = choose_columns({name: getattr(pl, TYPES[kind])() for name, kind in map(_named, table.split())}, wanted)
    assert (columns.ids, columns.dimensions) == (ids, tuple(dimensions.split()))
    assert columns.left_out == tuple(left_out.split())


def _named(text):
    name, _, kind = text.partition(":")
    return name, kind


def test_whole_numbers_that_may_be_ids_or_a_dimension_are_asked_for(tmp_path):
    pytest.importorskip("polars")
    (tmp_path / "a.csv").write_text("u,sku,v\n1.5,7,2.5\n3.5,9,4.5\n")
    with pytest.raises(ValueError, match=r"which of sku holds the ids\? Name it with ids= \(--ids\)\. Whole numbers"):
        read_vectors(tmp_path / "a.csv")
    read = read_vectors(tmp_path / "a.csv", ids="sku")
    assert (read.rows.tolist(), read.ids.tolist()) == ([[1.5, 2.5], [3.5, 4.5]], [7, 9])
    read = read_vectors(tmp_path / "a.csv", ids=False)
    assert read.rows.tolist() == [[1.5, 7, 2.5], [3.5, 9, 4.5]]
    assert read.notes == ("the whole numbers of sku are taken for numbers of the vectors",)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_dimension_of_whole_numbers_is_read(ending, tmp_path):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"d0": [1, 2], "sku": ["a", "b"], "d1": [0.5, 1.5], "d2": [-3, 4], "title": ["x", "y"]})
    path = tmp_path / f"a.{ending}"
    writers = {"parquet": frame.write_parquet, "jsonl": frame.write_ndjson}
    writers.get(ending, lambda path: frame.write_csv(path, separator="," if ending == "csv" else "\t"))(path)
    read = read_vectors(path, ids="sku")
    assert read.rows.tolist() == [[1, 0.5, -3], [2, 1.5, 4]]
    assert (read.ids, read.notes) == (["a", "b"], ("left out: title (the vectors are d0, d1, d2)",))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_types_may_show_late(ending, tmp_path):
    """Ids and numbers that are whole in the first 10,000 rows."""
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"id": range(11_000), "d0": [0.5] * 11_000, "d1": [1] * 11_000})
    path = tmp_path / f"a.{ending}"
    (frame.write_csv if ending == "csv" else frame.write_ndjson)(path)
    with path.open("a") as file:
        file.write("x7,1.5,2.5\n" if ending == "csv" else '{"id": "x7", "d0": 1.5, "d1": 2.5}\n')
    read = read_vectors(path)
    assert (read.rows[[0, -1]].tolist(), read.ids[:2], read.ids[-1]) == ([[0.5, 1], [1.5, 2.5]], ["0", "1"], "x7")


def test_parquet_is_read_in_parts_into_a_file_that_goes(tmp_path, monkeypatch):
    pl = pytest.importorskip("polars")
    monkeypatch.setattr(frames, "BATCH", 2)
    monkeypatch.setattr(frames, "IN_MEMORY", 4 * 5 * 3 - 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = np.arange(15, dtype=np.float32).reshape(5, 3) / 2
    frame = pl.DataFrame({"id": ["a", "b", "c", "d", "e"], "vector": rows.tolist(), "price": [1, 2, 3, 4, 5]})
    frame.write_parquet(tmp_path / "a.parquet")
    read = read_vectors(tmp_path / "a.parquet")
    assert isinstance(read.rows, np.memmap)
    assert np.array_equal(read.rows, rows)
    assert (read.ids, read.notes) == (["a", "b", "c", "d", "e"], ("left out: price (the vectors are vector)",))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    frame.with_columns(vector=pl.Series([*rows.tolist()[:3], [1.0], [2.0, 3.0]])).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="the vector in row 3 has 1 numbers, the first one 3"):
        read_vectors(tmp_path / "a.parquet")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_vectors(tmp_path / "rows.npy")
    with pytest.raises(FileNotFoundError, match="hf download google/bert --local-dir FOLDER"):
        read_vectors("google/bert")


def test_a_binary_file_that_promises_more_than_it_has_is_refused(tmp_path):
    path = tmp_path / "words.bin"
    path.write_bytes(b"9999999 60000\n")
    with pytest.raises(ValueError, match=r"9,999,999 vectors of 60,000 numbers, at least .* cut short"):
        read_vectors(path)
