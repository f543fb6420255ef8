"""What usearch, faiss, LanceDB and DuckDB keep of a table: bytes on disk, and recall@10 against the full matrix.

Rows are made up: 50 groups, with a few directions of much variance. Queries are rows with noise, by inner product. Each
store gets the vectors that a table decodes to, or the table's codes, or the full matrix for comparison.

    pip install faiss-cpu usearch lancedb duckdb
    python -m benchmarks.quality.vector_stores
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import faiss
import lancedb
import numpy as np
import pyarrow
import torch
from usearch.index import Index

import mgqe
from benchmarks._common import QUALITY, environment

K = 10
STORES = ("faiss-cpu", "usearch", "lancedb", "duckdb")
Found = tuple[np.ndarray, int]  # ids (queries, K), and bytes on disk


def made_up(rows: int, dim: int, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix and the queries."""
    draw = torch.Generator().manual_seed(0)
    centres, group = torch.randn(50, dim, generator=draw), torch.randint(50, (rows,), generator=draw)
    mix = torch.randn(dim, dim, generator=draw) * torch.arange(1, dim + 1).rsqrt().unsqueeze(1)
    weight = (centres[group] + 0.7 * torch.randn(rows, dim, generator=draw)) @ mix
    asked = weight[torch.randperm(rows, generator=draw)[:queries]]
    return weight, asked + 0.5 * weight.std() * torch.randn(queries, dim, generator=draw)


def even_table(weight: torch.Tensor) -> mgqe.CompactTable:
    """A table of one width and one number of bits, which faiss and a table of columns can hold as codes."""
    return mgqe.DPQEmbedding.from_pretrained(weight, num_subspaces=16, num_centroids=256).freeze()


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def in_table(table: mgqe.CompactTable, asked: torch.Tensor, folder: Path) -> Found:
    return table.topk(asked, K).ids.numpy(), mgqe.save(table, folder / "table.safetensors")


def in_faiss(index: Any, asked: torch.Tensor, folder: Path) -> Found:
    faiss.write_index(index, str(folder / "index.faiss"))
    return index.search(asked.numpy(), K)[1], size(folder / "index.faiss")


def flat(vectors: torch.Tensor) -> Any:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.numpy())
    return index


def in_usearch(vectors: torch.Tensor, asked: torch.Tensor, folder: Path, dtype: str) -> Found:
    index = Index(ndim=vectors.shape[1], metric="ip", dtype=dtype)
    index.add(np.arange(len(vectors)), vectors.numpy(), threads=1)
    index.save(folder / "index.usearch")
    return index.search(asked.numpy(), K, threads=1).keys.astype(np.int64), size(folder / "index.usearch")


def in_lancedb(vectors: torch.Tensor, asked: torch.Tensor, folder: Path, dtype: str) -> Found:
    values = pyarrow.array(vectors.numpy().astype(dtype).reshape(-1))
    column = pyarrow.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    rows = pyarrow.table({"id": np.arange(len(vectors)), "vector": column})
    items = lancedb.connect(folder / "lance").create_table("items", rows)
    found = [items.search(query).distance_type("dot").limit(K).to_arrow()["id"].to_numpy() for query in asked.numpy()]
    return np.stack(found), size(folder / "lance")


def in_duckdb(vectors: torch.Tensor, asked: torch.Tensor, folder: Path) -> Found:
    database = duckdb.connect(str(folder / "items.duckdb"))
    ids, values = np.arange(len(vectors)), vectors.numpy()
    rows = pyarrow.table({"id": ids, "vector": list(values)})  # noqa: F841 (DuckDB reads it by its name)
    database.execute(f"create table items as select id, vector::float[{vectors.shape[1]}] as vector from rows")
    ask = f"select id from items order by array_inner_product(vector, $1::float[{vectors.shape[1]}]) desc limit {K}"
    found = [database.execute(ask, [query.tolist()]).fetchnumpy()["id"] for query in asked.numpy()]
    database.close()
    return np.stack(found), size(folder / "items.duckdb")


def codes_in_duckdb(table: mgqe.CompactTable, asked: torch.Tensor, folder: Path) -> Found:
    """One column per code; the scores of a query's centroids come as a list, in which the codes are places."""
    codes = table.codes(torch.arange(len(table))).numpy().astype(np.uint8)
    centroids = table.to_tensors()[0]["centroids.0"].float()  # (D, K, s)
    rows = pyarrow.table({"id": np.arange(len(table))} | {f"c{j}": column for j, column in enumerate(codes.T)})  # noqa: F841
    database = duckdb.connect(str(folder / "codes.duckdb"))
    database.execute("create table items as select * from rows")
    score = " + ".join(
        f"getvariable('parts')[{1 + j * centroids.shape[1]} + c{j}::integer]" for j in range(codes.shape[1])
    )
    found = []
    for query in asked:
        parts = torch.einsum("dks,ds->dk", centroids, query.view(centroids.shape[0], -1))
        database.execute("set variable parts = $1::float[]", [parts.reshape(-1).tolist()])
        found.append(database.execute(f"select id from items order by {score} desc limit {K}").fetchnumpy()["id"])
    database.close()
    return np.stack(found), size(folder / "codes.duckdb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    weight, asked = made_up(options.rows, options.dim, options.queries)
    true = (asked @ weight.T).topk(K).indices.numpy()
    even = even_table(weight)
    planned = mgqe.compress_table(weight, budget=mgqe_bytes(even))
    decoded = planned.to_dense()
    ways: dict[tuple[str, str], Callable[[Path], Found]] = {
        ("mgqe", "the planned table"): lambda f: in_table(planned, asked, f),
        ("mgqe", "the even table"): lambda f: in_table(even, asked, f),
        ("faiss", "codes: IndexPQ of the even table"): lambda f: in_faiss(even.to_faiss(), asked, f),
        ("faiss", "decoded vectors: IndexFlatIP"): lambda f: in_faiss(flat(decoded), asked, f),
        ("usearch", "decoded vectors, float32"): lambda f: in_usearch(decoded, asked, f, "f32"),
        ("usearch", "decoded vectors, float16"): lambda f: in_usearch(decoded, asked, f, "f16"),
        ("usearch", "the full matrix, float32"): lambda f: in_usearch(weight, asked, f, "f32"),
        ("LanceDB", "decoded vectors, float32"): lambda f: in_lancedb(decoded, asked, f, "float32"),
        ("LanceDB", "decoded vectors, float16"): lambda f: in_lancedb(decoded, asked, f, "float16"),
        ("DuckDB", "decoded vectors, FLOAT[64]"): lambda f: in_duckdb(decoded, asked, f),
        ("DuckDB", "codes of the even table, one column each"): lambda f: codes_in_duckdb(even, asked, f),
    }
    records = []
    for (store, what), ask in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            found, nbytes = ask(Path(folder))
        recall = float((found[:, :, None] == true[:, None, :]).any(2).mean())
        records.append({"store": store, "what": what, "bytes": nbytes, "share": round(nbytes / weight.nbytes, 4),
                        "recall@10": round(recall, 4)})  # fmt: skip
        print(records[-1], flush=True)
    versions = {name: importlib.metadata.version(name) for name in STORES}
    content = {"environment": environment() | versions, "options": vars(options), "records": records}
    (QUALITY / "vector-stores.json").write_text(json.dumps(content, indent=1) + "\n")


def mgqe_bytes(table: mgqe.CompactTable) -> int:
    """Bytes of a table's file."""
    with tempfile.TemporaryDirectory() as folder:
        return mgqe.save(table, Path(folder) / "table.safetensors")


if __name__ == "__main__":
    main()
