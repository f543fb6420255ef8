"""Files that are appended to: processes that die at any point, disks that refuse, damaged files."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from growth_model import LAYOUTS, check_file, grow, quarters, saved
from raw_safetensors import read_raw, write_raw

from mgqe.baselines import FullTable
from mgqe.files.container import ArtifactError
from mgqe.table.appended import append
from mgqe.table.io import load, save
from mgqe.table.segment_files import all_records, all_segment_files


def record_of(path):
    """The file that says how many were appended."""
    (record,) = all_records(path)
    return record


TWO = LAYOUTS["two tiers, frequency order"]


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


# ---- crashes ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("action", ["append", "save"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["open", "fsync", "link", "replace", "unlink"])
def test_a_process_that_dies(action, call, after, tmp_path):
    """Killed before or after each call that touches the disk, nothing cleaned up: the old table or the new one."""
    if call == "unlink" and sys.version_info < (3, 11):
        pytest.skip("pathlib of Python 3.10 does not look os.unlink up when it is called")
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
            if call == "open" and not arguments[1] & os.O_CREAT:
                return plain(*arguments, **named)
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
    assert died == ((action, call) != ("save", "link"))
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
        again = load(path)
        assert again.equal(found)
        save(again, path)
    assert load(path).equal(found)


def failing(monkeypatch, call, number):
    def broken(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"mgqe.table.appended.os.{call}", broken)


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
    check_file(path, model)


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
    check_file(path, model)


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
    (put("metadata", version="3"), "'version' must be '1' or '2', got '3'"),
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
        assert f"move it and those with higher numbers away, and {record_of(path).name} with" in str(caught.value)
    last.unlink()
    with pytest.raises(ArtifactError, match=r"000002: this file is missing, and with it the ids from 17 to 18"):
        load(path)
    record_of(path).unlink()
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


def test_a_lost_last_file_is_noticed_by_whoever_loads_or_appends(tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path, [(3, 0), (2, 1), (4, 0)])
    files = all_segment_files(path)
    content = [file.read_bytes() for file in files]
    for left in (2, 1, 0):
        files[left].unlink()
        end = [14, 17, 19][left]
        text = rf"{files[left].name}: this file is missing, and with it the ids from {end} to 22 that were appended"
        with pytest.raises(ArtifactError, match=text):
            load(path)
        with pytest.raises(ArtifactError, match=text):
            append(path, quarters(1, 8, 0))
        assert all_segment_files(path) == files[:left]
    for file, was in zip(files, content, strict=True):
        file.write_bytes(was)
    check_file(path, model)


def test_a_file_of_another_copy_of_the_table_is_noticed(tmp_path):
    """Right in itself, of the same base, number, first id and tier: only the record knows."""
    ends = []
    for name in ("a", "b"):
        path = tmp_path / name
        model = saved(TWO, path)
        grow(model, path, [(3, 0)])
        append(path, quarters(2, 8, 50 if name == "a" else 60), 1)
        ends.append(all_segment_files(path)[-1])
    ends[0].write_bytes(ends[1].read_bytes())
    with pytest.raises(ArtifactError, match=r"000002: this file, or one with a lower number, is another one than was"):
        load(tmp_path / "a")


def test_a_process_that_died_before_it_recorded_its_file_leaves_a_whole_table(tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path, [(3, 0)])
    old = record_of(path).read_bytes()
    grow(model, path, [(2, 1), (2, 0)])
    record_of(path).write_bytes(old)
    check_file(path, model)
    grow(model, path, [(1, 1)])
    check_file(path, model)
    all_segment_files(path)[-1].unlink()
    with pytest.raises(ArtifactError, match=r"000004: this file is missing, and with it the ids from 21 to 21"):
        load(path)


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path)
    record = record_of(path)
    content = record.read_bytes()
    for at in range(0, len(content), 3):
        record.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        for use in (load, lambda path: append(path, quarters(1, 8, 0))):
            with pytest.raises(ArtifactError, match="delete it to load the table without") as caught:
                use(path)
            assert str(record) in str(caught.value)
    record.unlink()
    check_file(path, model)


@pytest.mark.parametrize("digest", ["", "zz", "0" * 17, 5])
def test_a_record_whose_checksums_hold_is_refused_all_the_same(digest, tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path)
    metadata, parts = read_raw(record_of(path))
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | {"digest": digest})
    write_raw(record_of(path), metadata, parts)
    for use in (load, lambda path: append(path, quarters(1, 8, 0))):
        with pytest.raises(ArtifactError, match="'digest' must be 16 hexadecimal digits, got"):
            use(path)


def test_a_record_that_cannot_be_written_does_not_undo_what_was_appended(tmp_path, monkeypatch):
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path)
    failing(monkeypatch, "replace", errno.ENOSPC)
    grow(model, path, [(2, 1)])
    monkeypatch.undo()
    check_file(path, model)


def test_names_that_only_look_alike_mean_nothing(tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    grow(model, path)
    first = all_segment_files(path)[0].name
    for name in (".a.append-tmp", "a.append-000001", f"b{first[1:]}", f"{first}.bak", f"{first[:-6]}1"):
        (tmp_path / name).write_bytes(b"mine")
    check_file(path, model)
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
    with pytest.raises(TypeError, match="vectors must be floats"):
        append(path, [["a"] * 8])
    with pytest.raises(ValueError, match=r"tier must be in 0 .. 1"):
        append(path, torch.zeros(1, 8), tier=2)
    metadata, parts = read_raw(path)
    dtype, shape, content = parts["centroids.0"]
    parts["centroids.0"] = dtype, shape, b"\0\0\xc0\x7f" + content[4:]
    write_raw(path, metadata, parts)
    with pytest.raises(ArtifactError, match=r"'centroids\.0' holds NaN"):
        append(path, torch.zeros(1, 8))
    assert not list(tmp_path.glob("*append*"))


@pytest.mark.parametrize("damage", [cut(-1), lambda file: file.unlink()], ids=["cut", "missing"])
def test_saving_does_not_delete_appended_files_behind_a_damaged_one(damage, tmp_path):
    path = tmp_path / "a"
    model = saved(TWO, path)
    mine = load(path)
    grow(model, path)
    damage(all_segment_files(path)[-1])
    left = all_segment_files(path)
    with pytest.raises(ValueError, match=r"not all of them can be read .* save under another name"):
        save(mine, path)
    assert all_segment_files(path) == left
    save(mine, tmp_path / "other")
    assert load(tmp_path / "other").num_embeddings == mine.num_embeddings
