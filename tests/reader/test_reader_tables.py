"""mgqe_reader gives the bits of mgqe, for every kind of table, from the same files."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from paths import GOLDEN
from raw_safetensors import read_raw, write_raw
from table_cases import CASES, build

import mgqe
import mgqe_reader

FILES = [
    *sorted(path for path in GOLDEN.rglob("*.safetensors") if path.parent.name in ("golden", "version-1")),
    GOLDEN / "appended" / "compact-small.safetensors",
    GOLDEN / "version-1" / "appended" / "compact-small.safetensors",
    GOLDEN / "sharded",
    GOLDEN / "version-1" / "sharded",
]
COMPACT = [path for path in FILES if path.name.startswith(("compact", "mixed")) or path.is_dir()]
OTHER = [path for path in FILES if path not in COMPACT]


def name(path):
    return str(path.relative_to(GOLDEN))


def same_bits(mine, theirs):
    theirs = theirs.numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert mine.dtype == theirs.dtype
    assert mine.shape == theirs.shape
    assert mine.tobytes() == theirs.tobytes()


def compare(mine, theirs):
    """Everything that both can be asked."""
    n, d = theirs.num_embeddings, theirs.embedding_dim
    assert (len(mine), mine.embedding_dim, mine.padding_idx) == (n, d, theirs.padding_idx)
    ids = np.arange(n)
    same_bits(mine.lookup(ids), theirs.lookup(torch.from_numpy(ids)))
    if theirs.fallback is not None:
        same_bits(mine.fallback, theirs.fallback)
        unknown = np.array([[n, 0], [-1, n - 1]])
        same_bits(mine.lookup(unknown), theirs.lookup(torch.from_numpy(unknown)))
        weights = np.array([[0.5, -2.0], [3.0, 1.0]], np.float32)
        for mode in ("sum", "mean", "max"):
            same_bits(mine.bag(unknown, mode=mode), theirs.bag(unknown, mode=mode))
        expected = theirs.bag(torch.from_numpy(unknown), per_sample_weights=torch.from_numpy(weights))
        same_bits(mine.bag(unknown, per_sample_weights=weights), expected)
    if n == 0:
        return
    generator = np.random.default_rng(n)
    some = generator.integers(0, n, 60)
    offsets = np.array([0, 5, 5, 21, 60])
    for mode in ("sum", "mean", "max"):
        same_bits(mine.bag(some, offsets, mode), theirs.bag(torch.from_numpy(some), torch.from_numpy(offsets), mode))
        same_bits(mine.bag(some.reshape(6, 10), mode=mode), theirs.bag(some.reshape(6, 10), mode=mode))
    weights = generator.standard_normal(60).astype(np.float32)
    expected = theirs.bag(
        torch.from_numpy(some), torch.tensor([0, 9, 60]), "sum", torch.from_numpy(weights), include_last_offset=True
    )
    same_bits(mine.bag(some, [0, 9, 60], "sum", weights, include_last_offset=True), expected)
    queries = generator.standard_normal((5, d)).astype(np.float32)
    lists = [generator.integers(0, n, size) for size in (0, 1, 3, n, 2)]
    k, bias = min(7, n), generator.standard_normal(n).astype(np.float32)
    mask = generator.random(n) < 0.5
    for options in (
        {},
        {"score": "cosine"},
        {"exclude": some[:3]},
        {"exclude": lists, "candidates": some},
        {"candidates": lists, "score": "cosine"},
        {"exclude": mask},
        {"candidates": mask},
        {"exclude": np.stack([mask, ~mask, mask, mask, ~mask])},
        {"exclude": np.array([[0, -1]] * 5)},
    ):
        asked = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
        for mine_found, found in zip(
            mine.topk(queries, k, **options), theirs.topk(torch.from_numpy(queries), k, **asked)
        ):
            same_bits(mine_found, found)
    found = mine.topk(queries[0], k, bias=bias)
    for mine_found, expected in zip(found, theirs.topk(torch.from_numpy(queries[0]), k, bias=torch.from_numpy(bias))):
        same_bits(mine_found, expected)


@pytest.mark.parametrize("path", COMPACT, ids=name)
@pytest.mark.parametrize("mmap", [True, False])
def test_golden_files(path, mmap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files of version 1 have no checksums
        theirs = mgqe.load(path)
    compare(mgqe_reader.load(path, mmap=mmap), theirs)


@pytest.mark.parametrize("path", OTHER, ids=name)
def test_tables_without_codes_are_refused_by_name(path):
    with pytest.raises(mgqe_reader.ArtifactError, match=r"kind '\w+', and this reader knows 'compact' alone"):
        mgqe_reader.load(path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_layout(case, tmp_path):
    table = build(case).table
    mgqe.save(table, tmp_path / "table")
    compare(mgqe_reader.load(tmp_path / "table"), table)


def test_what_was_appended_in_several_tiers(tmp_path):
    path = tmp_path / "table"
    mgqe.save(build(CASES[0]).table, path)
    for number, tier in enumerate((0, 1, 1, 0, 0, 0, 1), 1):
        mgqe.append(path, torch.randn(number, 8, generator=torch.Generator().manual_seed(number)), tier)
    compare(mgqe_reader.load(path), mgqe.load(path))
    os.symlink(path, tmp_path / "link")
    assert len(mgqe_reader.load(tmp_path / "link")) == 47 + 28


def test_lost_and_foreign_appended_files_are_refused(tmp_path):
    path = tmp_path / "table"
    mgqe.save(build(CASES[0]).table, path)
    for number in (1, 2, 3):
        mgqe.append(path, torch.full((1, 8), float(number)))
    _, second, third = sorted(file for file in tmp_path.glob("table.append-*-0*"))
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(mgqe_reader.ArtifactError, match=r"starts with id 49, not 48: a file before it is missing"):
        mgqe_reader.load(path)
    second.write_bytes(content)
    third.unlink()
    with pytest.raises(mgqe_reader.ArtifactError, match="names 3 appended files, of which 1 are missing"):
        mgqe_reader.load(path)


def test_too_many_changes_of_tier_are_refused(tmp_path):
    path = tmp_path / "table"
    mgqe.save(build(CASES[0]).table, path)
    for number in range(256):
        mgqe.append(path, torch.zeros(1, 8), number % 2)
    with pytest.raises(mgqe_reader.ArtifactError, match=r"make one file of it with mgqe.save\(mgqe.load"):
        mgqe_reader.load(path)
    mgqe.save(mgqe.load(path), path)
    compare(mgqe_reader.load(path), mgqe.load(path))


def test_checksums_of_blocks_of_every_length(tmp_path):
    metadata, parts = read_raw(GOLDEN / "compact-own-codebooks-float16.safetensors")
    for block in (*range(1, 300), 511, 1024, 1025, 2048, 2400):
        write_raw(tmp_path / "table", {**metadata, "block_bytes": str(block)}, parts)
        mgqe_reader.load(tmp_path / "table", verify=True)
    content = bytearray((tmp_path / "table").read_bytes())
    content[-100] ^= 1
    (tmp_path / "table").write_bytes(content)
    with pytest.raises(mgqe_reader.ArtifactError, match="is damaged: its checksum is another one"):
        mgqe_reader.load(tmp_path / "table")


@pytest.fixture
def table():
    return mgqe_reader.load(GOLDEN / "compact-small.safetensors")


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda t: t.lookup([0, 5]), IndexError, r"id 5 is out of range \(valid ids: 0 to 4\)"),
        (lambda t: t.lookup([-1]), IndexError, "id -1 is out of range"),
        (lambda t: t.lookup([0.5]), TypeError, "ids must be integers, got float64"),
        (lambda t: t.lookup(np.array([2**63], np.uint64)), IndexError, "beyond every table"),
        (lambda t: t.bag([[0, 9]]), IndexError, "id 9 is out of range"),
        (lambda t: t.bag([0, 1], [1]), ValueError, "offsets must start at 0"),
        (lambda t: t.bag([0, 1]), ValueError, "expected ids"),
        (lambda t: t.bag([[0]], mode="median"), ValueError, "mode must be one of sum, mean, max"),
        (lambda t: t.topk([1.0, 2.0], 0), ValueError, r"k must be in 1 .. 5"),
        (lambda t: t.topk([1.0, 2.0], 6), ValueError, r"k must be in 1 .. 5"),
        (lambda t: t.topk([1.0, 2.0], 10**15), ValueError, r"k must be in 1 .. 5"),
        (lambda t: t.topk([[1.0, 2.0], [np.nan, 0]], 1), ValueError, "query 1 holds NaN"),
        (lambda t: t.topk([1.0], 1), ValueError, r"queries must have shape \(2,\)"),
        (lambda t: t.topk([3e38, 3e38], 1), ValueError, "may leave float32"),
        (lambda t: t.topk([1.0, 2.0], 1, exclude=[7]), IndexError, "excluded id 7 is out of range"),
        (lambda t: t.topk([1.0, 2.0], 1, candidates=[-2]), IndexError, "candidate -2 is out of range"),
        (lambda t: t.topk([1.0, 2.0], 1, bias=[1.0]), ValueError, "one number per id"),
        (lambda t: t.topk([1.0, 2.0], 1, bias=np.ones(5), score="cosine"), ValueError, "a bias goes with"),
    ],
)
def test_bad_input(table, ask, error, message):
    with pytest.raises(error, match=message):
        ask(table)


def test_empty_calls(table):
    assert table.lookup([]).shape == (0, 2)
    assert table.lookup(3).tolist() == [-2.0, 0.5]
    assert table[2:4].tolist() == [[0.0, 0.0], [-2.0, 0.5]]
    assert table.bag(np.empty((2, 0), int)).tolist() == [[0, 0], [0, 0]]
    assert table.topk(np.empty((0, 2), np.float32), 2).ids.shape == (0, 2)
    assert table.topk([1.0, 0.0], 2, candidates=[]).ids.tolist() == [-1, -1]


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        mgqe_reader.load(tmp_path / "none")
    with pytest.raises(OSError, match="a folder must hold a table in shards, or a collection"):
        mgqe_reader.load(tmp_path)


WITHOUT_TORCH = """
import sys, time
for each in ("torch", "mgqe", "safetensors", "xxhash"):
    sys.modules[each] = None  # importing it is an error
import numpy
start = time.process_time()
import mgqe_reader
table = mgqe_reader.load(sys.argv[1])
print(time.process_time() - start)
print(table.lookup([4, 3]).tolist())
"""


def test_needs_numpy_alone_and_is_there_at_once():
    """In under 0.1 s beside NumPy, table included: 0.02 s of the processor, and other work is not counted."""
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(GOLDEN / "compact-small.safetensors")]
    seconds = []
    for _ in range(5):  # the first reads the files from the disk
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
        )
        took, rows = done.stdout.splitlines()
        assert rows == "[[0.25, -0.25], [-2.0, 0.5]]"
        seconds.append(float(took))
    assert min(seconds) < 0.1


@pytest.mark.skipif("MGQE_LIBRARY" in os.environ, reason="another library than the one that is installed")
def test_adds_less_than_two_megabytes():
    package = mgqe_reader.include_folder().parent
    shipped = [path for path in package.rglob("*") if path.suffix in (".py", ".h") and path.parent.name != "native"]
    assert sum(path.stat().st_size for path in [*shipped, mgqe_reader.library_path()]) < 2_000_000
