"""Files that are appended to: against a table of lists, under a new table of the same name, by several writers."""

import copy
import json
import os
import pickle
import sys
import threading
import warnings
from contextlib import nullcontext, suppress

import pytest
import torch
from growth_model import LAYOUTS, Model, check_file, grow, quarters, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_safetensors import read_raw, write_raw

import mgqe
from mgqe.baselines import FullTable
from mgqe.files.container import ArtifactError
from mgqe.table import appended as segments
from mgqe.table import io as artifact
from mgqe.table.appended import append
from mgqe.table.io import load, save
from mgqe.table.segment_files import all_records, all_segment_files

TWO = LAYOUTS["two tiers, frequency order"]
THREE = LAYOUTS["three tiers, any order"]
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@each_layout
def test_appended_files_are_read_back(layout, tmp_path):
    path = tmp_path / "items.safetensors"
    model = saved(layout, path)
    before = path.read_bytes()
    grow(model, path)
    check_file(path, model)
    assert path.read_bytes() == before
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 5
    assert [name[-7:] for name in names[1:]] == ["-000001", "-000002", "-000003", "-record"]
    save(load(path), path)
    check_file(path, model)
    assert [p.name for p in tmp_path.iterdir()] == ["items.safetensors"]
    grow(model, path, seed=9)
    check_file(path, model)


def test_by_hand(tmp_path):
    book = torch.tensor([[[0.0], [1.0], [2.0], [3.0]], [[0.0], [10.0], [20.0], [30.0]]])
    tiers = mgqe.Tiers.from_sizes((1, 1))
    codes = [torch.tensor([[3, 3]]), torch.tensor([[1, 0]])]
    save(mgqe.CompactTable.from_codes(tiers, codes, [book], (0, 0), (4, 2)), tmp_path / "a")
    ids = mgqe.append(tmp_path / "a", torch.tensor([[1.0, 0.0], [0.0, 9.0]]))
    assert (ids.dtype, ids.tolist()) == (torch.int64, [2, 3])
    (segment,) = all_segment_files(tmp_path / "a")
    metadata, parts = read_raw(segment)
    # Two codes of one bit: code 0 in bit 0, code 1 in bit 1.
    assert parts == {"codes": ("U8", [2, 1], bytes([0b01, 0b10]))}
    config = json.loads(metadata["config"])
    assert (metadata["kind"], config["first_id"], config["tier"]) == ("compact-append", 2, 1)
    assert segment.stat().st_size < 450
    assert load(tmp_path / "a").lookup(ids).tolist() == [[1, 0], [0, 10]]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_equals_appending_in_memory(dtype, tmp_path):
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, k, (n, 4), generator=generator) for n, k in ((5, 16), (20, 11))]
    table = mgqe.CompactTable.from_codes(
        mgqe.Tiers.from_sizes((5, 20)), codes, [torch.randn(4, 16, 2, generator=generator)], (0, 0), (16, 11), 4, dtype
    )
    save(table, tmp_path / "a")
    for tier in (None, 0, 0, 1):
        vectors = torch.randn(7, 8, generator=generator)
        assert torch.equal(append(tmp_path / "a", vectors, tier), table.append(vectors, tier))
    assert load(tmp_path / "a").equal(table)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "update", "save", "load", "append to the file"]),
        st.integers(0, 9),
        st.integers(0, 2),
    ),
    max_size=10,
)


@settings(max_examples=40, deadline=None)
@given(layout=st.sampled_from(list(LAYOUTS)), seed=st.integers(0, 1000), steps=STEPS)
def test_any_interleaving(layout, seed, steps, tmp_path_factory):
    """A file and a table in memory, each with its model."""
    path = tmp_path_factory.mktemp("grown") / "a"
    on_disk, in_memory = saved(LAYOUTS[layout], path, seed), Model(**LAYOUTS[layout], seed=seed)
    table, d = load(path), in_memory.embedding_dim
    appended = False  # since the table was read
    for number, (what, count, tier) in enumerate(steps):
        vectors = quarters(count, d, seed + number)
        tier %= table.num_tiers
        if what == "append":
            assert table.append(vectors, tier).tolist() == in_memory.append(vectors, tier)
        elif what == "append to the file":
            assert append(path, vectors, tier).tolist() == on_disk.append(vectors, tier)
            appended = appended or count > 0
        elif what == "update":
            ids = torch.randperm(len(in_memory.tiers))[:count]
            ids = ids[ids != (-1 if in_memory.padding_idx is None else in_memory.padding_idx)]
            table.update(ids, vectors[: len(ids)])
            in_memory.update(ids.tolist(), vectors[: len(ids)])
        elif what == "save" and appended:
            with pytest.raises(ValueError, match="would be lost: load it again"):
                save(table, path)
        elif what == "save":
            save(table, path)
            on_disk.tiers, on_disk.codes = [*in_memory.tiers], [*in_memory.codes]
        else:
            table = load(path, mmap=count % 2 == 0)
            in_memory.tiers, in_memory.codes = [*on_disk.tiers], [*on_disk.codes]
            appended = False
    assert torch.equal(table.lookup(torch.arange(table.num_embeddings)), in_memory.rows())
    check_file(path, on_disk)


def test_many_small_files_are_one_extent_and_the_base_stays_mapped(tmp_path):
    path = tmp_path / "a"
    model = saved(THREE, path)
    grow(model, path, [(1, 2)] * 20)
    state = load(path).snapshot
    assert [extent.rows.shape[0] for extent in state.extents] == [20]
    if sys.platform == "linux":
        assert mapped_from(state.codes[0]) == str(path)
        assert mapped_from(state.extents[0].rows) != str(path)
        save(load(path), path)
        grow(model, path, [(5, 2)])
        (file,) = all_segment_files(path)
        assert mapped_from(load(path).snapshot.extents[0].rows) == str(file)
        assert mapped_from(load(path, mmap=False).snapshot.extents[0].rows) != str(file)


def mapped_from(tensor):
    """The file in which a tensor's memory lies."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            ends = [int(end, 16) for end in line.split()[0].split("-")]
            if ends[0] <= tensor.data_ptr() < ends[1]:
                return line.split(maxsplit=5)[5:][0].strip() if len(line.split()) > 5 else ""
    raise AssertionError("not in the memory map")


def test_a_table_loaded_before_does_not_change(tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    table, rows = load(path), model.rows()
    grow(model, path)
    save(model.table(), path)
    assert torch.equal(table.lookup(torch.arange(len(rows))), rows)
    assert table.num_embeddings == len(rows)


def test_beside_what_a_link_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    model = saved(TWO, tmp_path / "real" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    grow(model, tmp_path / "link")
    check_file(tmp_path / "link", model)
    check_file(tmp_path / "real" / "a", model)
    assert len(list((tmp_path / "real").iterdir())) == 5


def test_copied_files_are_the_same_table(tmp_path):
    model = saved(TWO, tmp_path / "a")
    grow(model, tmp_path / "a")
    other = tmp_path / "elsewhere"
    other.mkdir()
    for file in tmp_path.glob("a*"):
        (other / file.name).write_bytes(file.read_bytes())
    check_file(other / "a", model)
    grow(model, other / "a", seed=8)
    check_file(other / "a", model)


def test_nothing_to_append(tmp_path):
    model = saved(TWO, tmp_path / "a")
    assert append(tmp_path / "a", torch.zeros(0, 8)).tolist() == []
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    grow(model, tmp_path / "a")
    assert append(tmp_path / "a", torch.zeros(0, 8)).shape == (0,)


def test_the_fallback_is_saved_and_stays_with_appended_ids(tmp_path):
    model = Model(**TWO)
    table = model.table().with_fallback(torch.arange(8) / 2)
    save(table, tmp_path / "a")
    grow(model, tmp_path / "a")
    loaded = load(tmp_path / "a")
    n = loaded.num_embeddings
    assert torch.equal(loaded.lookup(torch.tensor([n, -1])), (torch.arange(8) / 2).expand(2, 8))
    assert torch.equal(loaded.lookup(torch.arange(n)), model.rows())
    metadata, parts = read_raw(tmp_path / "a")
    parts["fallback"] = ("F32", [8], parts["fallback"][2][:-4] + b"\0\0\xc0\x7f")
    write_raw(tmp_path / "b", metadata, parts)
    with pytest.raises(ArtifactError, match="'fallback' holds NaN"):
        load(tmp_path / "b")


# ---- a new table under the same name ---------------------------------------------------------------------------


@pytest.mark.parametrize("new", ["same", "other codes", "other centroids", "grown", "another kind"])
def test_appended_files_of_the_table_before_are_never_applied(new, tmp_path, monkeypatch):
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path)
    before = load(path)
    fresh = Model(**TWO, seed=1 if new == "other centroids" else 0)
    if new == "other codes":
        fresh.update([0, 1], quarters(2, 8, 77))
    if new == "grown":  # whose ids end where one of the files begins
        fresh.append(quarters(3, 8, 5), 0)
    table = FullTable(torch.zeros(14, 8)) if new == "another kind" else fresh.table()
    with monkeypatch.context() as patched:
        patched.setattr("mgqe.table.io.Path.unlink", _refuse)  # as a crash right after the new table got its name
        save(table, path)
    assert len(all_segment_files(path)) == 3
    assert before.equal(model.table())  # as mapped
    if new == "another kind":
        assert load(path).equal(table)
        return
    with pytest.warns(RuntimeWarning, match=r"000001 and 2 more left out: .*Delete them, or save the table again"):
        assert load(path).equal(table)
    grow(fresh, path, [(2, 1)])  # beside the old ones
    with pytest.warns(RuntimeWarning, match="2 more left out"):
        assert load(path).equal(fresh.table())
    save(fresh.table(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    check_file(path, fresh)


def _refuse(self, missing_ok=False):
    if self.exists():
        raise OSError("kept")


def test_refuses_to_lose_what_was_appended(tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    table = load(path).with_fallback(torch.zeros(8))
    save(table, path)
    table.append(quarters(1, 8, 0))
    save(table, path)  # its own file: nothing to lose
    append(path, quarters(2, 8, 1))
    with pytest.raises(ValueError, match=r"a: 2 ids were appended to the file since this table was read"):
        save(table, path)
    for copied in (copy.deepcopy(table), pickle.loads(pickle.dumps(table)), table.to("cpu")):
        with pytest.raises(ValueError, match="2 ids were appended"):
            save(copied, path)
    assert load(path).num_embeddings == 17
    save(table, tmp_path / "b")
    save(load(path), path)
    save(model.table(), path)  # one that was never in this file replaces it
    assert load(path).num_embeddings == 14
    save(table, path)  # and so does one that was, once another table has its place
    assert load(path).num_embeddings == 15
    append(path, quarters(2, 8, 1))
    for file in all_segment_files(path):
        file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not all of them can be read"):
        save(table, path)
    for file in [*all_segment_files(path), *all_records(path)]:
        file.unlink()  # what the error says: move them away
    save(table, path)
    append(path, quarters(2, 8, 1))
    path.unlink()
    save(table, path)


def test_equal_tables_are_equal_bytes_where_nothing_was_appended(tmp_path):
    saved(TWO, tmp_path / "a")
    first = (tmp_path / "a").read_bytes()
    saved(TWO, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == first


def test_a_table_saved_while_another_appends(tmp_path, monkeypatch):
    """The new table comes between the encoding and the new file: the ids go to the new table."""
    path = tmp_path / "a"
    saved(TWO, path)
    fresh = Model(**TWO, seed=3)
    plain, calls = segments._publish, []

    def late(*arguments):
        if not calls:
            save(fresh.table(), path)
        calls.append(arguments[0])
        return plain(*arguments)

    monkeypatch.setattr(segments, "_publish", late)
    monkeypatch.setattr(artifact, "file_lock", lambda *_, **__: nullcontext())  # a system without file locks
    vectors = quarters(4, 8, 1)
    assert append(path, vectors, 1).tolist() == fresh.append(vectors, 1)
    assert len(calls) == 2
    assert all_segment_files(path) == [calls[1]]
    check_file(path, fresh)


def test_a_table_saved_while_another_loads(tmp_path, monkeypatch):
    """The base is read, then replaced, and what was appended to it removed: the new table is loaded."""
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path)
    plain, calls = segments.read_segment, []

    def late(*arguments):
        calls.append(arguments[0])
        if len(calls) == 2:
            save(model.table(), path)
        return plain(*arguments)

    monkeypatch.setattr(segments, "read_segment", late)
    assert load(path).equal(model.table())
    assert len(calls) == 2  # nothing is appended to the new one


# ---- several writers -------------------------------------------------------------------------------------------


def test_threads_that_append_at_once(tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    n, found, errors = len(model.tiers), {}, []

    def writer(number):
        try:
            for step in range(4):
                vectors = quarters(2, 8, 10 * number + step)
                found[tuple(append(path, vectors, number % 2).tolist())] = vectors, number % 2
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(i for ids in found for i in ids) == list(range(n, n + 48))
    for ids in sorted(found):
        assert tuple(model.append(*found[ids])) == ids
    check_file(path, model)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_append_and_one_that_saves(tmp_path):
    """While one makes a single file of all, again and again, every id that another appended stays what it was."""
    path = tmp_path / "a"
    model = saved(TWO, path)

    def appends(number):
        with open(tmp_path / f"ids.{number}", "w") as ids:
            for step in range(8):
                ids.write(f"{append(path, quarters(1, 8, step), number).item()}\n")

    def saves():
        for _ in range(12):
            with suppress(ValueError):  # ids were appended since it was read
                save(load(path), path)

    run_in_forks([lambda: appends(0), lambda: appends(1), saves])
    table = load(path)
    ids = [[int(i) for i in (tmp_path / f"ids.{number}").read_text().split()] for number in (0, 1)]
    assert sorted(ids[0] + ids[1]) == list(range(14, 30))
    for step, pair in enumerate(zip(ids[0], ids[1], strict=True)):
        for number, i in enumerate(pair):
            model_codes = model.encode(quarters(1, 8, step), number)
            assert table.codes(torch.tensor([i])).tolist() == model_codes
            assert table.locate(torch.tensor([i]))[0].item() == number
    assert torch.equal(table.lookup(torch.arange(14)), model.rows())


def run_in_forks(jobs):
    """Each in a process of its own, which must end well."""
    children = []
    for job in jobs:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                warnings.simplefilter("ignore")
                job()
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * len(jobs)
