"""IdMap: ids of any type, numbered by frequency."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mgqe
from mgqe import IdMap

pl = pytest.importorskip("polars")

LOG = [7, -3, 7, 5, -3, 7, 9]  # 7 occurs three times, -3 twice, 5 and 9 once, so that these are sorted by value


def by_frequency(ids):
    """The ids in row order, computed in plain Python; equal counts are in the order of UTF-8 bytes."""
    counts = Counter(ids)
    return sorted(counts, key=lambda i: (-counts[i], i.encode() if isinstance(i, str) else i))


def frame_of(ids, dtype=None):
    return pl.DataFrame({"item": pl.Series(ids, dtype=dtype)})


def test_by_hand():
    ids = IdMap.from_log(frame_of(LOG), "item")
    assert (len(ids), ids.kind, ids.interactions, ids.distinct) == (4, "int64", 7, 4)
    assert ids.ids([0, 1, 2, 3]).tolist() == [7, -3, 5, 9]
    assert ids.counts.tolist() == [3, 2, 1, 1]
    rows = ids.rows(torch.tensor([[9, 7], [5, -3]]))
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[3, 0], [2, 1]]
    assert ids.rows(5).tolist() == 2
    assert ids.share(1) == 3 / 7
    assert ids.share(4) == 1
    assert mgqe.Tiers.from_counts(ids.counts, (0.5, 0.5)) == mgqe.Tiers.from_fractions(len(ids), (0.5, 0.5))
    assert "4 ids, int64, 7 interactions" in repr(ids)


def test_strings_and_binaries_by_hand():
    words = ["é", "z", "z", "", "a much longer one, of several words", "é", "z", "日本", "e\x00"]
    ids = IdMap.from_log(frame_of(words), "item")
    expected = ["z", "é", "", "a much longer one, of several words", "e\x00", "日本"]
    assert ids.kind == "string"
    assert ids.ids(range(6)) == expected
    assert ids.rows(expected).tolist() == [*range(6)]
    assert ids.rows("日本").tolist() == 5
    assert ids.rows(["e", "z\x00", "É", "日"], unknown=-1).tolist() == [-1] * 4
    raw = IdMap.from_log(frame_of([w.encode() for w in words]), "item")
    assert raw.kind == "binary"
    assert raw.ids(torch.arange(6)) == [w.encode() for w in expected]
    assert raw.rows([b"", "é".encode()]).tolist() == [2, 1]


IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5), min_size=1),
    st.lists(st.integers(2**63, 2**64 - 1) | st.integers(0, 5), min_size=1),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from("abc"), min_size=1),
    st.lists(st.binary(max_size=30) | st.sampled_from([b"a", b"a\0", b""]), min_size=1),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=IDS, files=st.integers(1, 3), memory=st.sampled_from([300, 2000, 1 << 30]), data=st.data())
def test_any_ids_in_any_pieces(ids, files, memory, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    kind = pl.Series(ids, dtype=pl.UInt64).dtype if isinstance(ids[0], int) and max(ids) >= 2**63 else None
    for number in range(files):
        frame_of(ids[number::files], kind or pl.Series(ids).dtype).write_parquet(folder / f"{number}.parquet")
    found = IdMap.from_log(str(folder / "*.parquet"), "item", memory_limit=memory)
    expected = by_frequency(ids)
    counts = Counter(ids)
    assert list(found.ids(torch.arange(len(found)))) == expected
    assert found.counts.tolist() == [counts[i] for i in expected]
    assert found.rows(ids).tolist() == [expected.index(i) for i in ids]
    found.save(folder / "ids.safetensors")
    again = IdMap.load(folder / "ids.safetensors")
    again.validate()
    asked = data.draw(
        st.lists(st.sampled_from(expected) | IDS.map(lambda x: x[0]).filter(lambda x: type(x) is type(ids[0])))
    )
    rows = {i: row for row, i in enumerate(expected)}
    assert again.rows(asked, unknown=-1).tolist() == [rows.get(i, -1) for i in asked]
    low, most = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    cut = [i for i in expected if counts[i] >= low][:most]
    if cut:
        some = IdMap.from_log(str(folder / "*.parquet"), "item", memory_limit=memory, min_count=low, max_ids=most)
        assert list(some.ids(torch.arange(len(some)))) == cut
        assert (some.interactions, some.distinct) == (len(ids), len(expected))


def test_many_ids_of_every_width():
    generator = np.random.default_rng(0)
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        info = np.iinfo(dtype)
        log = generator.integers(info.min, info.max, 20_000, dtype=dtype, endpoint=True)
        ids = IdMap.from_log(pl.DataFrame({"item": log}), "item", memory_limit=500_000)
        expected = by_frequency(log.tolist())
        assert ids.ids(torch.arange(len(ids))).tolist() == expected
        assert torch.equal(ids.rows(np.array(expected, dtype)), torch.arange(len(ids)))
        assert torch.equal(ids.rows(pl.Series(expected, dtype=pl.Series(log).dtype)), torch.arange(len(ids)))
        if info.max <= 2**31 - 1:
            assert ids.nbytes_by_part()["ids"] == 4 * len(ids)
        ids.validate()


def test_what_can_be_asked():
    ids = IdMap.from_log(frame_of(LOG), "item")
    expected = [0, 1, 2]
    for asked in (
        [7, -3, 5],
        (7, -3, 5),
        np.array([7, -3, 5], np.int8),
        np.array([7, -3, 5], object),
        torch.tensor([7, -3, 5], dtype=torch.int16),
        pl.Series([7, -3, 5]),
        [np.int64(7), -3, 5],
    ):
        assert ids.rows(asked).tolist() == expected
    assert ids.rows([]).shape == (0,)
    assert ids.rows(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3)
    # The same 64 bits as another integer type are another id.
    assert ids.rows([2**64 - 3, 7, -(2**70)], unknown=4).tolist() == [4, 0, 4]
    assert ids.rows(np.array([2**64 - 3, 7], np.uint64), unknown=-1).tolist() == [-1, 0]
    assert ids.rows(torch.tensor([2**64 - 3], dtype=torch.uint64), unknown=-1).tolist() == [-1]
    large = IdMap.from_log(frame_of([2**64 - 3, 1, 1], pl.UInt64), "item")
    assert large.rows([1, 2**64 - 3]).tolist() == [0, 1]
    assert large.rows(np.array([-3, 1]), unknown=-1).tolist() == [-1, 0]
    assert large.ids([1]).dtype == np.uint64
    words = IdMap.from_log(frame_of(["b", "a", "b"]), "item")
    for asked in (["b", "a"], np.array(["b", "a"]), np.array(["b", "a"], object), pl.Series(["b", "a"])):
        assert words.rows(asked).tolist() == [0, 1]
    assert words.rows(np.array([["b"], ["c"]]), unknown=2).tolist() == [[0], [2]]


def test_numbers_and_counts_fit_a_table_that_a_budget_planned(tmp_path):
    words = [f"item-{n}" for n in range(400)]
    ids = IdMap.from_log(frame_of([word for n, word in enumerate(words) for _ in range(1 + 400 // (n + 1))]), "item")
    weight = torch.randn(len(ids), 16, generator=torch.Generator().manual_seed(0))
    table = mgqe.MGQEmbedding.from_pretrained(weight, counts=ids.counts, budget="20%").freeze()
    mgqe.save(table, tmp_path / "table")
    ids.save(tmp_path / "ids")
    table, ids = mgqe.load(tmp_path / "table"), IdMap.load(tmp_path / "ids")
    rows = ids.rows(["item-7", "item-399", "never seen"], unknown=0)
    assert torch.equal(table.lookup(rows), table.to_dense()[rows])
    assert sorted(ids.ids(table.topk(table.lookup(rows[:1]), len(ids)).ids[0])) == sorted(words)


def test_unknown_ids_and_wrong_kinds():
    ids = IdMap.from_log(frame_of(LOG), "item")
    words = IdMap.from_log(frame_of(["b", "a", "b"]), "item")
    with pytest.raises(KeyError, match=r"does not know 2 of the ids: 8, 11\. Leave them out, or say with unknown="):
        ids.rows([8, 7, 11])
    with pytest.raises(KeyError, match="does not know 1 of the ids: 'c'"):
        words.rows(["b", "c"])
    with pytest.raises(TypeError, match=r"the map's ids are integers \(int64\), got float64"):
        ids.rows(np.array([7.0]))
    with pytest.raises(TypeError, match=r"of kind int64, but at position 0 is 7\.5, float"):
        ids.rows([7.5])
    with pytest.raises(TypeError, match="integers"):
        ids.rows(["7"])
    with pytest.raises(TypeError, match="integers"):
        ids.rows(torch.tensor([True]))
    with pytest.raises(ValueError, match="1 missing ids"):
        ids.rows(pl.Series([7, None]))
    with pytest.raises(ValueError, match="position 1 is missing"):
        words.rows(["b", None])
    with pytest.raises(TypeError, match="of kind string, but at position 1 is 3, int"):
        words.rows(["b", 3])
    with pytest.raises(TypeError, match="of kind string, but at position 0 is b'b', bytes"):
        words.rows([b"b"])
    with pytest.raises(TypeError, match="kind string, got int"):
        words.rows(3)
    with pytest.raises(ValueError, match="UTF-8"):
        words.rows(["\ud800"])
    with pytest.raises(IndexError, match="row 4 is out of range"):
        ids.ids([4])


def test_hashes_alone():
    log = [f"user-{i % 700}" for i in range(1000)]
    full, small = (IdMap.from_log(frame_of(log), "item", keep_ids=keep) for keep in (True, False))
    assert small.rows(log).equal(full.rows(log))
    assert small.rows(["user", "user-700"], unknown=-1).tolist() == [-1, -1]
    assert small.nbytes < full.nbytes
    small.validate()
    with pytest.raises(ValueError, match="holds hashes instead of ids"):
        small.ids([0])
    with pytest.raises(ValueError, match="keep_ids=False is for strings"):
        IdMap.from_log(frame_of(LOG), "item", keep_ids=False)
