"""count_ids and merge_counts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import mgqe

IDS = torch.tensor([[3, 1], [1, 0]])
EXPECTED = torch.tensor([1, 2, 0, 1, 0])


@pytest.mark.parametrize(
    "source",
    [
        IDS,
        IDS.to(torch.uint8),
        IDS.numpy().astype(np.uint64),
        IDS.tolist(),
        (3, 1, 1, 0),
        [IDS[0], IDS[1].numpy()],
        [[3, 1, 1], [0]],
        [torch.empty(0), IDS],
        DataLoader(IDS.flatten(), batch_size=3),
        (row for row in IDS),
    ],
    ids=lambda source: type(source).__name__,
)
def test_ids_and_batches(source):
    counts = mgqe.count_ids(source, 5)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, EXPECTED)


def test_batches_smaller_and_larger_than_the_table():
    ids = torch.randint(5, (40,), generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([int((ids == i).sum()) for i in range(5)])
    for size in (1, 4, 5, 6, 40):
        assert torch.equal(mgqe.count_ids(DataLoader(ids, batch_size=size), 5), expected)


def test_keys():
    loader = DataLoader(TensorDataset(torch.zeros(4), IDS.flatten()), batch_size=2)
    assert torch.equal(mgqe.count_ids(loader, 5, key=1), EXPECTED)
    dicts = [{"item": row, "label": 0} for row in IDS]
    assert torch.equal(mgqe.count_ids(dicts, 5, key="item"), EXPECTED)
    assert torch.equal(mgqe.count_ids(dicts, 5, key=lambda batch: batch["item"][:1]), torch.tensor([0, 1, 0, 1, 0]))


def test_ids_that_do_not_count():
    padded = torch.tensor([[3, 1, -100], [1, 0, -1]])
    assert torch.equal(mgqe.count_ids(padded, 5, ignore=(-1, -100)), EXPECTED)
    assert mgqe.count_ids(padded[:, :2], 5, ignore=0).tolist() == [0, 2, 0, 1, 0]


def test_shards_add_up():
    parts = [mgqe.count_ids(row, 5) for row in IDS]
    assert torch.equal(mgqe.merge_counts(*parts), EXPECTED)
    assert torch.equal(mgqe.merge_counts(iter(parts)), EXPECTED)
    assert mgqe.Tiers.from_counts(mgqe.merge_counts(parts)).sizes == (1, 4)
    with pytest.raises(ValueError, match=r"number 1 has \(4,\) and number 0 \(5,\)"):
        mgqe.merge_counts(parts[0], parts[0][:4])
    with pytest.raises(TypeError, match=r"number 0 is torch\.float32"):
        mgqe.merge_counts(parts[0].float())
    with pytest.raises(ValueError, match="no counts"):
        mgqe.merge_counts([])


@pytest.mark.parametrize(
    ("source", "options", "error", "match"),
    [
        (torch.tensor([1, 5]), {}, ValueError, "the ids: id 5 is out of range, valid ids are 0 to 4"),
        ([IDS, torch.tensor([-1])], {}, ValueError, "batch 1: id -1 is out of range"),
        (np.array([2**63 + 1], dtype=np.uint64), {}, ValueError, "out of range"),
        ([IDS, np.array([1.0, np.nan])], {}, ValueError, "batch 1: NaN at position 1"),
        (torch.tensor([1.0]), {}, TypeError, "the ids: expected integers, got float32"),
        ([["a"]], {}, TypeError, "batch 0 is a list of 1: say which"),
        ([np.array(["a"])], {}, TypeError, "batch 0: expected integers, got <U1"),
        ([torch.tensor([True])], {}, TypeError, "expected integers, got bool"),
        ([{"item": IDS}], {}, TypeError, r"batch 0 is a mapping of \['item'\]: say which with key="),
        ([(IDS, IDS)], {}, TypeError, "batch 0 is a tuple of 2: say which"),
        ([{"item": IDS}], {"key": "user"}, KeyError, "batch 0 has no 'user': it is keys"),
        ([(IDS,)], {"key": 3}, KeyError, "batch 0 has no 3: it is a tuple"),
        ({"item": IDS}, {}, TypeError, "cannot count ids in a dict"),
        (None, {}, TypeError, "cannot count ids in a NoneType"),
        (IDS, {"key": "item"}, ValueError, "key= is for batches"),
        (IDS, {"column": "item"}, ValueError, "column= is for files"),
        (iter([]), {}, ValueError, "no ids to count"),
        ("clicks.csv", {}, ValueError, "needs column="),
    ],
)
def test_bad_input(source, options, error, match):
    with pytest.raises(error, match=match):
        mgqe.count_ids(source, 5, **options)


def test_bad_sizes():
    with pytest.raises(ValueError, match="num_embeddings must be"):
        mgqe.count_ids(IDS, 0)


def test_files(tmp_path):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"item": [3, 1, 1, 0], "other": [4, 4, 4, 4], "tags": [[3, 1], [], [1], [0]]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_parquet(tmp_path / "b.parquet")
    frame.drop("tags").write_csv(tmp_path / "a.csv", separator="\t")
    assert torch.equal(mgqe.count_ids(tmp_path / "a.parquet", 5, column="item"), EXPECTED)
    assert torch.equal(mgqe.count_ids(tmp_path / "a.parquet", 5, column="tags"), EXPECTED)
    assert torch.equal(mgqe.count_ids(frame, 5, column="item"), EXPECTED)
    assert torch.equal(mgqe.count_ids(tmp_path / "a.csv", 5, column="item", separator="\t"), EXPECTED)
    both = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for source in (both, str(tmp_path / "*.parquet")):
        assert torch.equal(mgqe.count_ids(source, 5, column="item"), 2 * EXPECTED)
    total = mgqe.count_ids(frame, 5, column=["item", "other"])
    assert total.tolist() == [1, 2, 0, 1, 4]
    assert mgqe.count_ids(frame, 5, column=["item", "other"], ignore=4).tolist() == EXPECTED.tolist()


def test_bad_files(tmp_path, monkeypatch):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"item": [3, 1, 9], "holes": [1, None, 2], "name": ["a", "b", "c"], "real": [1.0, 2.0, 3.0]})
    frame.write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"item": [], "real": [float("nan")] * 0}).write_parquet(tmp_path / "empty.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:50])

    def count(column="item", name="a.parquet"):
        return mgqe.count_ids(tmp_path / name, 5, column=column)

    with pytest.raises(ValueError, match="column 'item': id 9 is out of range"):
        count()
    with pytest.raises(ValueError, match=r"a\.parquet: column 'holes', row 1 from 0: 1 missing ids \(null\)"):
        count("holes")
    with pytest.raises(TypeError, match="column 'name': expected integers, got String"):
        count("name")
    with pytest.raises(TypeError, match="column 'real': expected integers, got float64"):
        count("real")
    with pytest.raises(ValueError, match="column 'real': NaN"):
        mgqe.count_ids(pl.DataFrame({"real": [1.0, float("nan")]}), 5, column="real")
    with pytest.raises(KeyError, match="no column 'items': the file has item, holes, name, real"):
        count("items")
    with pytest.raises(FileNotFoundError):
        count(name="b.parquet")
    with pytest.raises(ValueError, match=r"torn\.parquet: cannot be read"):
        count(name="torn.parquet")
    with pytest.raises((ValueError, TypeError), match=r"no ids to count|expected integers"):
        count(name="empty.parquet")
    rows = "".join(f"{i % 5},x\n" for i in range(500))
    for bad, match in (("x,3\n", "expected an integer .*, got 'x'"), ("1,2,3\n", "has 3 fields, expected")):
        (tmp_path / "bad.csv").write_text("item,t\n" + rows + bad + rows)
        with pytest.raises(ValueError, match=rf"bad\.csv: line 502.* {match}"):
            count(name="bad.csv")
    with pytest.raises(ValueError, match="files of one kind"):
        mgqe.count_ids([tmp_path / "a.parquet", tmp_path / "bad.csv"], 5, column="item")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match=r"pip install 'mgqe\[recsys\]'"):
        count()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clicks.parquet", "clicks.csv"])
def test_files_larger_than_memory(name, tmp_path):
    """60 million ids are 480 MB as int64; the process may grow by 350 MB while it counts them."""
    pl = pytest.importorskip("polars")
    resource = pytest.importorskip("resource")
    rows = 3_000_000
    generator = np.random.default_rng(0)
    shards = []
    for shard in range(20):
        path = tmp_path / f"{shard}-{name}"
        ids = (1000 * generator.random(rows) ** 3).astype(np.int64)
        frame = pl.DataFrame({"item": ids, "time": generator.random(rows) if name.endswith("parquet") else 0})
        frame.write_parquet(path) if name.endswith("parquet") else frame.write_csv(path)
        shards.append(path)
    code = (
        "import resource, mgqe, torch, polars\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used()\n"
        f"counts = mgqe.count_ids({str(tmp_path / ('*-' + name))!r}, 1000, column='item')\n"
        f"assert counts.sum() == {20 * rows}, counts.sum()\n"
        "print(used() - before)"
    )
    assert resource
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 350_000
