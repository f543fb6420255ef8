"""IdMap.from_log: the logs that it counts, and the errors for those that cannot be counted."""

from __future__ import annotations

import subprocess
import sys
from datetime import date

import numpy as np
import pytest
import torch

from mgqe import IdMap

pl = pytest.importorskip("polars")


def ids_of(found):
    return list(found.ids(torch.arange(len(found))))


def test_columns_and_lists():
    frame = pl.DataFrame(
        {
            "item": [3, 1, 1],
            "other": pl.Series([1, 3, 2], dtype=pl.UInt8),
            "tags": [[5, 5], [], [1]],
            "nested": [[[5], []], [], [[5, 1]]],
            "pair": pl.Series([[3, 3], [1, 1], [3, 1]], dtype=pl.Array(pl.Int64, 2)),
            "kind": pl.Series(["b", "a", "b"], dtype=pl.Categorical),
        }
    )
    assert ids_of(IdMap.from_log(frame, "item")) == [1, 3]
    assert ids_of(IdMap.from_log(frame, ["item", "other"])) == [1, 3, 2]
    assert ids_of(IdMap.from_log(frame.lazy(), "tags")) == [5, 1]
    assert ids_of(IdMap.from_log(frame, "nested")) == [5, 1]
    assert ids_of(IdMap.from_log(frame, "pair")) == [1, 3]
    assert ids_of(IdMap.from_log(frame, ("tags", "item"))) == [1, 5, 3]
    assert ids_of(IdMap.from_log(frame, "kind")) == ["b", "a"]
    assert ids_of(IdMap.from_log(frame, ["kind", "item"], kind="string")) == ["1", "b", "3", "a"]
    assert IdMap.from_log(frame, "tags", ignore=5).counts.tolist() == [1]
    assert ids_of(IdMap.from_log(frame, ["item", "tags"], ignore=[1, 3])) == [5]
    assert ids_of(IdMap.from_log(frame, "kind", ignore="b")) == ["a"]
    mixed = pl.DataFrame({"a": pl.Series([2**63], dtype=pl.UInt64), "b": [4]})
    assert ids_of(IdMap.from_log(mixed, ["a", "b"])) == [4, 2**63]


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("item;name\n7;x\n7;007\n3;7\n")
    assert ids_of(IdMap.from_log(path, "item", separator=";")) == [7, 3]
    assert ids_of(IdMap.from_log(path, "name", separator=";")) == ["007", "7", "x"]
    assert ids_of(IdMap.from_log(path, ["item", "name"], separator=";", kind="string")) == ["7", "007", "3", "x"]


def test_parts_and_passes():
    """With memory for a tenth of the ids there are ten passes, and they give the same map."""
    log = np.random.default_rng(0).zipf(1.2, 50_000) % 20_000
    frame, passes = pl.DataFrame({"item": log}), []
    whole = IdMap.from_log(frame, "item")
    parts = IdMap.from_log(frame, "item", memory_limit=500_000, on_pass=lambda *p: passes.append(p))
    assert passes == [(i, 10) for i in range(11)]
    assert ids_of(parts) == ids_of(whole)
    assert parts.counts.equal(whole.counts)
    assert IdMap.from_log(frame, "item", min_count=2).distinct == whole.distinct
    text = IdMap.from_log(frame, "item", memory_limit=1_000_000, kind="string")
    assert text.counts.equal(whole.counts)


def test_a_sampled_log_counts_alike(monkeypatch):
    monkeypatch.setattr("mgqe.ids.log_counts.SMALL", 1000)
    log = np.random.default_rng(0).integers(0, 40_000, 100_000)
    for kind, each in (("int64", 90), ("string", 160)):
        passes = []
        found = IdMap.from_log(
            pl.DataFrame({"item": log}),
            "item",
            memory_limit=5000 * each,
            kind=kind,
            on_pass=lambda *p, to=passes: to.append(p),
        )
        assert len(found) == len(np.unique(log))
        assert 4 < len(passes) < 20


@pytest.fixture
def logs(tmp_path):
    """Writes files, the middle one bad, and returns their pattern."""

    def write(name, *contents):
        for number, content in enumerate(contents):
            path = tmp_path / f"{number}-{name}"
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content.write_parquet(path)
        return str(tmp_path / f"*-{name}")

    return write


MANY = b"".join(b"%d,x\n" % i for i in range(500))


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (
            b"A17,x\n",
            r"1-a\.csv: line 502, column 'item': expected an integer \(int64\), got 'A17': correct .* kind='string'",
        ),
        (b"1.5,x\n", r"1-a\.csv: line 502, column 'item': expected an integer .* got '1\.5'"),
        (b"99999999999999999999,x\n", r"line 502, column 'item': expected an integer \(int64\), got '9999"),
        (b"7,x,y\n", r"1-a\.csv: line 502 has 3 fields, expected the header's 2: correct or drop"),
        (b",x\n", r"1-a\.csv: line 502, column 'item': missing id, expected int64"),
        (b"\xff\xfe,x\n", r"1-a\.csv: line 502, column 'item': .* is not UTF-8"),
    ],
)
def test_a_bad_row_in_the_middle_of_a_csv(logs, bad, match, tmp_path):
    pattern = logs("a.csv", b"item,t\n" + MANY, b"item,t\n" + MANY + bad + MANY, b"item,t\n" + MANY)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=match):
        IdMap.from_log(pattern, "item")
    assert sorted(tmp_path.iterdir()) == before
    if bad.startswith(b"A17"):
        assert IdMap.from_log(pattern, "item", kind="string").distinct == 501


def test_a_bad_file_in_the_middle(logs, tmp_path):
    good = pl.DataFrame({"item": list(range(1000)), "tags": [[1]] * 1000})
    holes = good.with_columns(pl.when(pl.col("item") == 600).then(None).otherwise(pl.col("item")).alias("item"))
    good.write_parquet(tmp_path / "good.parquet")
    content = bytearray((tmp_path / "good.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"1-a\.parquet: column 'item', row 600 from 0: 1 missing ids \(null\): drop"):
        IdMap.from_log(logs("a.parquet", good, holes, good), "item")
    with pytest.raises(ValueError, match=r"1-b\.parquet: cannot be read as parquet: damaged, or cut short"):
        IdMap.from_log(logs("b.parquet", good, bytes(content[: len(content) // 2]), good), "item")
    with pytest.raises(ValueError, match=r"1-c\.parquet: .*its columns are not those"):
        IdMap.from_log(logs("c.parquet", good, good.rename({"item": "items"}), good), "item")
    with pytest.raises(ValueError, match=r"d\.parquet"):
        IdMap.from_log(logs("d.parquet", good, good.with_columns(pl.col("item").cast(pl.String))), "item")
    words = pl.DataFrame({"item": ["1", "2", "x3"]})
    with pytest.raises(
        ValueError, match=r"0-e\.parquet: column 'item', row 2 from 0: holds 'x3', cannot be read as int64"
    ):
        IdMap.from_log(logs("e.parquet", words), "item", kind="int64")
    with pytest.raises(
        ValueError, match=r"the frame: column 'item', row 1 from 0: holds '-4', cannot be read as uint64"
    ):
        IdMap.from_log(pl.DataFrame({"item": [1, -4]}), "item", kind="uint64")
    with pytest.raises(ValueError, match="the frame: column 'item', row 2 from 0: 2 missing ids"):
        IdMap.from_log(pl.DataFrame({"item": ["a", "a", None, None]}), "item", memory_limit=100)
    with pytest.raises(ValueError, match="1 missing ids"):
        IdMap.from_log(pl.DataFrame({"tags": [[1], None]}), "tags")


def test_a_log_that_grows_while_it_is_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("item\n1\n1\n2\n")
    with pytest.raises(ValueError, match=r"a\.csv: changed while it was counted: first 3 ids, then 4; count again"):
        IdMap.from_log(path, "item", on_pass=lambda done, of: path.write_text("item\n1\n1\n2\n3\n"))


def test_other_mistakes(tmp_path, monkeypatch):
    frame = pl.DataFrame({"item": [3, 1], "real": [1.0, 2.0], "name": ["a", "b"], "big": [date(2020, 1, 1)] * 2})
    frame.drop("big").write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("item\n1\n")

    def count(source=frame, column="item", **options):
        return IdMap.from_log(source, column, **options)

    with pytest.raises(KeyError, match="no column 'items': the file has item, real, name"):
        count(column="items")
    with pytest.raises(TypeError, match="column 'real': expected integers, strings or binaries, got Float64: cast"):
        count(column="real")
    with pytest.raises(TypeError, match="got Date"):
        count(column="big")
    with pytest.raises(TypeError, match=r"several kinds \('item' Int64, 'name' String\): choose one"):
        count(column=["item", "name"])
    with pytest.raises(ValueError, match="names no column"):
        count(column=[])
    with pytest.raises(ValueError, match="no ids to count"):
        count(frame.head(0))
    with pytest.raises(ValueError, match="none of the 2 different ids occurs 2 times: lower min_count"):
        count(min_count=2)
    for name in ("min_count", "max_ids", "memory_limit"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of 1 or more, got 0"):
            count(**{name: 0})
    with pytest.raises(ValueError, match="kind must be one of int64, uint64, string, binary, got 'text'"):
        count(kind="text")
    with pytest.raises(TypeError, match=r"expected a path, .* got ndarray"):
        count(np.array([1]))
    with pytest.raises(FileNotFoundError):
        count(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="files of one kind"):
        count([tmp_path / "a.parquet", tmp_path / "a.csv"])
    with pytest.raises(TypeError, match="ignore"):
        count(ignore=["a"])
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match=r"pip install 'mgqe\[recsys\]'"):
        count(tmp_path / "a.parquet")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_is_bounded(tmp_path):
    """Two million different ids need 180 MB of hash tables; the process may grow by 130 MB."""
    generator = np.random.default_rng(0)
    for shard in range(4):
        ids = generator.integers(-(2**63), 2**63 - 1, 501_000)
        ids[:1000] = shard % 3
        pl.DataFrame({"item": ids}).write_parquet(tmp_path / f"{shard}.parquet", row_group_size=50_000)
    code = (
        "import mgqe, torch, polars\n"
        "used = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "before = used()\n"
        f"ids = mgqe.IdMap.from_log({str(tmp_path / '*.parquet')!r}, 'item', max_ids=3, memory_limit=50 << 20)\n"
        "assert ids.ids([0, 1, 2]).tolist() == [0, 1, 2], ids.ids([0, 1, 2])\n"
        "assert ids.counts.tolist() == [2000, 1000, 1000]\n"
        "assert (ids.interactions, ids.distinct) == (2_004_000, 2_000_003)\n"
        "print(used() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 130_000
