"""Files that are appended to: against a table of plain lists, at every crash point, by several writers, damaged."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest
import torch
from growth_model import LAYOUTS, Model, quarters
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_safetensors import read_raw, write_raw

import mgqe
from mgqe import segments
from mgqe.artifact import ArtifactError, load, save
from mgqe.baselines import FullTable
from mgqe.segments import all_segment_files, append

TWO = LAYOUTS["two tiers, frequency order"]
THREE = LAYOUTS["three tiers, any order"]
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def saved(layout, path, seed=0):
    model = Model(**layout, seed=seed)
    save(model.table(), path)
    return model


def grow(model, path, steps=((3, 0), (2, 1), (1, 1)), seed=5):
    """Append to the file and the model alike: (rows, tier) each."""
    for number, (n, tier) in enumerate(steps):
        tier %= len(model.num_subspaces)
        vectors = quarters(n, model.embedding_dim, seed + number)
        assert append(path, vectors, tier).tolist() == model.append(vectors, tier)


def check(path, model):
    for mmap in (True, False):
        table = load(path, mmap=mmap)
        assert torch.equal(table.lookup(torch.arange(table.num_embeddings)), model.rows())
        assert table.equal(model.table())


@each_layout
def test_appended_files_are_read_back(layout, tmp_path):
    path = tmp_path / "items.safetensors"
    model = saved(layout, path)
    before = path.read_bytes()
    grow(model, path)
    check(path, model)
    assert path.read_bytes() == before
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 4
    assert [name[-7:] for name in names[1:]] == ["-000001", "-000002", "-000003"]
    save(load(path), path)
    check(path, model)
    assert [p.name for p in tmp_path.iterdir()] == ["items.safetensors"]
    grow(model, path, seed=9)
    check(path, model)


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
    assert segment.stat().st_size < 500
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
    for number, (what, count, tier) in enumerate(steps):
        vectors = quarters(count, d, seed + number)
        tier %= table.num_tiers
        if what == "append":
            assert table.append(vectors, tier).tolist() == in_memory.append(vectors, tier)
        elif what == "append to the file":
            assert append(path, vectors, tier).tolist() == on_disk.append(vectors, tier)
        elif what == "update":
            ids = torch.randperm(len(in_memory.tiers))[:count]
            ids = ids[ids != (-1 if in_memory.padding_idx is None else in_memory.padding_idx)]
            table.update(ids, vectors[: len(ids)])
            in_memory.update(ids.tolist(), vectors[: len(ids)])
        elif what == "save":
            save(table, path)
            on_disk.tiers, on_disk.codes = [*in_memory.tiers], [*in_memory.codes]
        else:
            table = load(path, mmap=count % 2 == 0)
            in_memory.tiers, in_memory.codes = [*on_disk.tiers], [*on_disk.codes]
    assert torch.equal(table.lookup(torch.arange(table.num_embeddings)), in_memory.rows())
    check(path, on_disk)


def test_many_small_files_are_one_extent_and_the_base_stays_mapped(tmp_path):
    path = tmp_path / "a"
    model = saved(THREE, path)
    grow(model, path, [(1, 2)] * 20)
    state = load(path)._state
    assert [extent.rows.shape[0] for extent in state.extents] == [20]
    if sys.platform == "linux":
        assert mapped_from(state.codes[0]) == str(path)
        assert mapped_from(state.extents[0].rows) != str(path)
        save(load(path), path)
        grow(model, path, [(5, 2)])
        (file,) = all_segment_files(path)
        assert mapped_from(load(path)._state.extents[0].rows) == str(file)
        assert mapped_from(load(path, mmap=False)._state.extents[0].rows) != str(file)


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
    check(tmp_path / "link", model)
    check(tmp_path / "real" / "a", model)
    assert len(list((tmp_path / "real").iterdir())) == 4


def test_copied_files_are_the_same_table(tmp_path):
    model = saved(TWO, tmp_path / "a")
    grow(model, tmp_path / "a")
    other = tmp_path / "elsewhere"
    other.mkdir()
    for file in tmp_path.glob("a*"):
        (other / file.name).write_bytes(file.read_bytes())
    check(other / "a", model)
    grow(model, other / "a", seed=8)
    check(other / "a", model)


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
        patched.setattr("mgqe.artifact.Path.unlink", _refuse)  # as a crash right after the new table got its name
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
    check(path, fresh)


def _refuse(self, missing_ok=False):
    if self.exists():
        raise OSError("kept")


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
    vectors = quarters(4, 8, 1)
    assert append(path, vectors, 1).tolist() == fresh.append(vectors, 1)
    assert len(calls) == 2
    assert all_segment_files(path) == [calls[1]]
    check(path, fresh)


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


# ---- crashes ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("action", ["append", "save"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["open", "fsync", "link", "replace", "unlink"])
def test_a_process_that_dies(action, call, after, tmp_path):
    """Killed before or after each call that touches the disk, nothing cleaned up: the old table or the new one."""
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path, [(2, 0), (1, 1)])
    old = model.table()
    vectors = quarters(3, 8, 50)
    if action == "append":
        model.append(vectors, 1)
    else:
        model.update([0, 1, 2], vectors)
    new = model.table()
    pid = os.fork()
    if pid == 0:
        plain = getattr(os, call)

        def dies(*arguments, **named):
            if after:
                plain(*arguments, **named)
            os._exit(9)

        setattr(os, call, dies)
        try:
            append(path, vectors, 1) if action == "append" else save(new, path)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    died = os.waitstatus_to_exitcode(status) == 9
    assert died == ((action, call) not in {("append", "replace"), ("save", "link")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load(path)
    expected = {
        ("append", "link"): new if after else old,
        ("append", "replace"): new,
        ("append", "unlink"): new,
        ("save", "link"): new,
        ("save", "replace"): new if after else old,
        ("save", "unlink"): new,
    }.get((action, call), old)
    assert found.equal(expected)
    # And life goes on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = append(path, vectors, 1)
        assert ids.tolist() == list(range(found.num_embeddings, found.num_embeddings + 3))
        found.append(vectors, 1)
        assert load(path).equal(found)
        save(found, path)
    assert load(path).equal(found)


def failing(monkeypatch, call, number):
    def broken(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"mgqe.segments.os.{call}", broken)


@pytest.mark.parametrize(
    ("call", "number", "remedy"),
    [
        ("open", errno.EACCES, "may be written to"),
        ("open", errno.EROFS, "may be written to"),
        ("fsync", errno.ENOSPC, "has the space"),
        ("link", errno.ENOSPC, "has the space"),
        ("link", errno.EPERM, "no hard links: load the table, append to it in memory and save it"),
    ],
)
def test_a_disk_that_refuses(call, number, remedy, tmp_path, monkeypatch):
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path)
    files = sorted(tmp_path.iterdir())
    failing(monkeypatch, call, number)
    with pytest.raises(OSError, match=rf"could not append [\d,]+ bytes \(.*nothing has changed.*{remedy}") as caught:
        append(path, quarters(2, 8, 0))
    assert caught.value.errno == number
    assert str(path) in str(caught.value)
    monkeypatch.undo()
    assert sorted(tmp_path.iterdir()) == files
    check(path, model)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a process limit on file size")
def test_a_disk_that_fills_up(tmp_path):
    """A real short write, by a limit on the size of files, in a process of its own."""
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path)
    files = sorted(tmp_path.iterdir())
    code = """
        import errno, resource, signal, sys, torch
        from mgqe import append
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            append(sys.argv[1], torch.zeros(40_000, 8))
        except OSError as error:
            sys.exit(0 if error.errno == errno.EFBIG else 2)
        sys.exit(1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], env=os.environ, check=False)
    assert done.returncode == 0
    assert sorted(tmp_path.iterdir()) == files
    check(path, model)


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
    check(path, model)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_append_and_one_that_saves(tmp_path):
    """Whoever wins, the file is a whole table: saves are of the file itself, so ids may be lost but never mixed up."""
    path = tmp_path / "a"
    model = saved(TWO, path)
    children = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                warnings.simplefilter("ignore")
                for step in range(6):
                    if number == 2:
                        save(load(path), path)
                    else:
                        append(path, quarters(1, 8, step), number)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    table = load(path)
    assert torch.equal(table.lookup(torch.arange(14)), model.rows())
    possible = [table.assign(quarters(1, 8, step), tier).tolist()[0] for step in range(6) for tier in (0, 1)]
    assert all(codes in possible for codes in table.codes(torch.arange(14, table.num_embeddings)).tolist())


# ---- files that cannot be right --------------------------------------------------------------------------------


def rewrite(change):
    """A change of metadata, config and tensors."""

    def apply(file):
        metadata, parts = read_raw(file)
        config = json.loads(metadata["config"])
        change(metadata, config, parts)
        metadata["config"] = json.dumps(config)
        write_raw(file, metadata, parts)

    return apply


def cut(at):
    return lambda file: file.write_bytes(file.read_bytes()[:at])


def put(part, **values):
    return rewrite(lambda metadata, config, parts: {"metadata": metadata, "config": config}[part].update(values))


def codes(dtype, shape, content):
    return rewrite(lambda metadata, config, parts: parts.update(codes=(dtype, shape, content)))


BAD = [
    (cut(0), "not a whole safetensors file"),
    (cut(100), "not a whole safetensors file"),
    (cut(-1), "not a whole safetensors file"),
    (lambda file: file.write_bytes(os.urandom(400)), "not a whole safetensors file"),
    (put("metadata", format="other"), "'format' must be 'mgqe'"),
    (put("metadata", version="2"), "'version' must be '1', got '2'"),
    (put("metadata", kind="compact"), "'kind' must be 'compact-append', got 'compact'"),
    (put("config", base="0" * 64), "'base' must be one of"),
    (put("config", base=None), "'base' must be one of"),
    (put("config", first_id=13), "'first_id' must be a whole number in 14"),
    (put("config", first_id=18), "starts with id 18, not 17: a file before it is missing"),
    (put("config", first_id=16), "starts with id 16, not 17: ids are given twice"),
    (put("config", first_id=2**60), "'first_id' must be a whole number"),
    (put("config", first_id=17.0), "'first_id' must be a whole number"),
    (put("config", tier=2), "'tier' must be a whole number in 0 .. 1"),
    (put("config", tier=-1), "'tier' must be a whole number"),
    (put("config", more=1), "unexpected config entries"),
    (rewrite(lambda m, config, p: config.pop("tier")), "no entry 'tier'"),
    (rewrite(lambda m, c, parts: parts.pop("codes")), "'codes' is missing"),
    (rewrite(lambda m, c, parts: parts.update(more=("U8", [1], b"\0"))), "unexpected tensors"),
    (codes("U8", [0, 2], b""), r"must have shape \(any, 2\), got \(0, 2\)"),
    (codes("U8", [2, 1], b"\0\0"), r"must have shape \(any, 2\), got \(2, 1\)"),
    (codes("I8", [1, 2], b"\0\0"), "must be torch.uint8"),
    (codes("U8", [1, 2], b"\x05\0"), "holds code 5, but num_centroids is 5"),
    (codes("U8", [1, 2], b"\0\x10"), "spare bits"),
]


@pytest.mark.parametrize(("change", "match"), BAD)
def test_refuses(change, match, tmp_path):
    path = tmp_path / "a"
    grow(saved(TWO, path), path, [(3, 0), (2, 1)])
    _, last = all_segment_files(path)
    change(last)
    for mmap in (True, False):
        with pytest.raises(ArtifactError, match=match) as caught:
            load(path, mmap=mmap)
        assert str(last) in str(caught.value)
        assert "move it and those with higher numbers away" in str(caught.value)
    last.unlink()
    assert load(path).num_embeddings == 17


def test_does_not_append_behind_a_damaged_file(tmp_path):
    path = tmp_path / "a"
    grow(saved(TWO, path), path)
    last = all_segment_files(path)[-1]
    cut(-1)(last)
    with pytest.raises(ArtifactError, match="not a whole") as caught:
        append(path, quarters(1, 8, 0))
    assert str(last) in str(caught.value)


def test_a_missing_file_is_noticed(tmp_path):
    path = tmp_path / "a"
    grow(saved(TWO, path), path)
    all_segment_files(path)[1].unlink()
    with pytest.raises(ArtifactError, match=r"000003: starts with id 19, not 17: a file before it is missing"):
        load(path)


def test_names_that_only_look_alike_mean_nothing(tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path)
    first = all_segment_files(path)[0].name
    for name in (".a.append-tmp", "a.append-000001", f"b{first[1:]}", f"{first}.bak", f"{first[:-6]}1"):
        (tmp_path / name).write_bytes(b"mine")
    check(path, model)
    save(model.table(), path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "a", ".a.append-tmp", "a.append-000001", f"b{first[1:]}", f"{first}.bak", f"{first[:-6]}1"
    }  # fmt: skip


def test_what_cannot_be_appended_to(tmp_path):
    with pytest.raises(FileNotFoundError):
        append(tmp_path / "none", torch.zeros(1, 8))
    with pytest.raises(IsADirectoryError):
        append(tmp_path, torch.zeros(1, 8))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ArtifactError, match=r"text: not a whole safetensors file"):
        append(tmp_path / "text", torch.zeros(1, 8))
    save(FullTable(torch.zeros(3, 8)), tmp_path / "full")
    with pytest.raises(ArtifactError, match=r"tables of kind 'compact', this one is 'full'"):
        append(tmp_path / "full", torch.zeros(1, 8))
    path = tmp_path / "a"
    saved(TWO, path)
    with pytest.raises(ValueError, match=r"vectors\[1\] holds NaN"):
        append(path, torch.tensor([[0.0] * 8, [torch.nan] * 8]))
    with pytest.raises(TypeError, match="got list"):
        append(path, [[0.0] * 8])
    with pytest.raises(ValueError, match=r"tier must be in 0 .. 1"):
        append(path, torch.zeros(1, 8), tier=2)
    metadata, parts = read_raw(path)
    dtype, shape, content = parts["centroids.0"]
    parts["centroids.0"] = dtype, shape, b"\0\0\xc0\x7f" + content[4:]
    write_raw(path, metadata, parts)
    with pytest.raises(ArtifactError, match=r"'centroids\.0' holds NaN"):
        append(path, torch.zeros(1, 8))
    assert not list(tmp_path.glob("*append*"))
