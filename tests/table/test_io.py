"""Files of frozen tables: round trips, atomic writes, mapping, refusal of files that cannot be right."""

import copy
import errno
import json
import os
import struct
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_safetensors import read_raw, write_raw
from table_cases import CASES, MIXED, build

from mgqe.codec.tiers import Tiers
from mgqe.files.container import ArtifactError
from mgqe.table.compact import CompactTable
from mgqe.table.io import load, save

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
MAPPED = CASES[3]  # three tiers in any order: every part but scales
INT8 = CASES[7]


@each_case
@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip(case, mmap, tmp_path):
    table = build(case).table
    path = tmp_path / "table.safetensors"
    nbytes = save(table, path)
    loaded = load(path, mmap=mmap)
    assert type(loaded) is CompactTable
    assert loaded.equal(table)
    assert torch.equal(loaded.to_dense(), table.to_dense())
    assert nbytes == path.stat().st_size
    assert table.nbytes < nbytes <= table.nbytes + 2500
    assert [p.name for p in tmp_path.iterdir()] == ["table.safetensors"]


def test_equal_tables_are_equal_bytes(tmp_path):
    save(build(MAPPED).table, tmp_path / "a")
    save(copy.deepcopy(build(MAPPED).table), str(tmp_path / "b"))
    save(load(tmp_path / "a"), tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_the_safetensors_package_reads_it(tmp_path):
    from safetensors.torch import load_file

    table = build(MAPPED).table
    save(table, tmp_path / "a")
    tensors, _ = table.to_tensors()
    found = load_file(tmp_path / "a")
    assert found.keys() == {*tensors, "checksums"}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_elements_are_aligned(tmp_path):
    save(build(INT8).table, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 64 == 0
    header = json.loads(content[8:start])
    for name, entry in header.items():
        if name != "__metadata__":
            width = {"I64": 8, "I32": 4, "F32": 4}.get(entry["dtype"], 1)
            assert entry["data_offsets"][0] % width == 0


def test_overwrites_a_file_that_is_mapped(tmp_path):
    first, second = build(MAPPED, 1).table, build(MAPPED, 2).table
    save(first, tmp_path / "a")
    mapped = load(tmp_path / "a")
    save(second, tmp_path / "a")
    assert mapped.equal(first)
    assert load(tmp_path / "a").equal(second)
    save(mapped, tmp_path / "a")
    assert load(tmp_path / "a").equal(first)


def test_follows_a_link_and_keeps_it(tmp_path):
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    table = build(MAPPED).table
    save(table, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "real").equal(table)


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        save(build(MAPPED).table, tmp_path / "a")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(broken, tmp_path, monkeypatch):
    old = build(MAPPED, 1).table
    path = tmp_path / "a"
    save(old, path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"mgqe.table.io.os.{broken}", full)
    with pytest.raises(OSError, match=r"could not write [\d,]+ bytes \(No space left.*nothing at the path") as caught:
        save(build(MAPPED, 2).table, path)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert load(path).equal(old)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a process limit on file size")
def test_a_disk_that_fills_up(tmp_path):
    """A real short write, by a limit on the size of files, in a process of its own."""
    code = """
        import errno, resource, signal, sys, torch
        from mgqe.table.io import save
        from mgqe.table.compact import CompactTable
        from mgqe.codec.tiers import Tiers
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        table = CompactTable.from_codes(
            Tiers.from_sizes((100_000,)), [torch.zeros(100_000, 4, dtype=torch.uint8)],
            [torch.randn(4, 256, 2)], (0,), (256,))
        try:
            save(table, sys.argv[1])
        except OSError as error:
            sys.exit(0 if error.errno == errno.EFBIG else 2)
        sys.exit(1)
    """
    path = tmp_path / "a"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
    assert done.returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"


def test_an_interrupt_removes_the_temporary(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mgqe.table.io.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(build(MAPPED).table, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_and_unreadable_paths(tmp_path):
    table = build(MAPPED).table
    with pytest.raises(FileNotFoundError, match="folder exists"):
        save(table, tmp_path / "missing" / "a")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")
    with pytest.raises(OSError):
        load(tmp_path)
    with pytest.raises(TypeError, match="expected a frozen table, got Embedding"):
        save(torch.nn.Embedding(3, 2), tmp_path / "a")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_load_maps_the_file(tmp_path):
    """A 100 MB file, loaded in a process of its own: memory grows by little."""
    n = 6_250_000
    table = CompactTable.from_codes(
        Tiers.from_sizes((n,)), [torch.zeros(n, 16, dtype=torch.uint8)], [torch.randn(16, 256, 1)], (0,), (256,)
    )
    assert save(table, tmp_path / "a") > 100_000_000
    code = """
        import sys, torch
        from mgqe.table.io import load
        def held(field):
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024
        before = held("VmRSS"), held("RssAnon")
        table = load(sys.argv[1])
        print(held("VmRSS") - before[0])
        table.lookup(torch.arange(0, 6_250_000, 6_000))
        print(held("RssAnon") - before[1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")], check=True, capture_output=True, text=True
    )
    loaded, anonymous = map(int, done.stdout.split())
    assert loaded < 20
    assert anonymous < 20


# Files that cannot be right. Each mutation gets (metadata, config, parts) of a good file and changes them.


def change_config(**entries):
    def change(metadata, config, parts):
        config.update(entries)

    return change


def drop_config(name):
    def change(metadata, config, parts):
        del config[name]

    return change


def set_metadata(**entries):
    def change(metadata, config, parts):
        metadata.update(entries)

    return change


def drop_metadata(name):
    def change(metadata, config, parts):
        del metadata[name]

    return change


def set_part(name, dtype=None, shape=None, content=None):
    def change(metadata, config, parts):
        was = parts[name]
        parts[name] = (dtype or was[0], was[1] if shape is None else shape, was[2] if content is None else content)

    return change


def drop_part(name):
    def change(metadata, config, parts):
        del parts[name]

    return change


def patch(name, offset, content):
    def change(metadata, config, parts):
        dtype, shape, was = parts[name]
        parts[name] = (dtype, shape, was[:offset] + content + was[offset + len(content) :])

    return change


def add_part(metadata, config, parts):
    parts["bonus"] = ("U8", [1], b"x")


HUGE = 10**400
BAD_FILES = [
    (MAPPED, drop_metadata("format"), "'format' must be 'mgqe'"),
    (MAPPED, set_metadata(format="other" * 9999), "'format' must be 'mgqe', got 'other"),
    (MAPPED, set_metadata(format="other"), "'format' must be 'mgqe', got 'other'"),
    (MAPPED, drop_metadata("version"), "'version' must be '1' or '2', got None"),
    (MAPPED, set_metadata(version="3"), "'version' must be '1' or '2', got '3'"),
    (MAPPED, set_metadata(version=1), "not a whole safetensors file"),
    (MAPPED, drop_metadata("kind"), "'kind' is missing"),
    (MAPPED, set_metadata(kind="bogus"), "'kind' is 'bogus'"),
    (MAPPED, set_metadata(config=None), "not a whole safetensors file"),
    (MAPPED, set_metadata(config="{"), "'config' is not JSON"),
    (MAPPED, set_metadata(config=""), "'config' is not JSON"),
    (MAPPED, set_metadata(config="[" * 100_000), "'config' is not JSON"),
    (MAPPED, set_metadata(config="[]"), "must be a JSON object, got \\[\\]"),
    (MAPPED, set_metadata(config="NaN"), "must be a JSON object, got NaN"),
    (MAPPED, set_metadata(config='{"sizes":[1],"sizes":[1]}'), "occurs twice"),
    (MAPPED, set_metadata(config="9" * 5000), "'config' is not JSON"),
    (MAPPED, set_metadata(config=" " * (1 << 20) + "{}"), "'config' has 1048578 characters"),
    (MAPPED, change_config(extra=1), r"unexpected config entries \['extra'\]"),
    *[(MAPPED, drop_config(name), f"no entry '{name}'") for name in ("sizes", "order", "padding_idx")],
    *[
        (MAPPED, change_config(num_embeddings=value), "'num_embeddings'")
        for value in (-1, HUGE, 1.0, "330", None, True, [330])
    ],
    (MAPPED, change_config(num_embeddings=331), "summing to num_embeddings=331"),
    (MAPPED, change_config(embedding_dim=0), "'embedding_dim' must be a whole number in 1"),
    (MAPPED, change_config(embedding_dim=HUGE), "'embedding_dim'.*a number of 1329 bits"),
    (MAPPED, change_config(embedding_dim=16), "tier 0 has 4 subspaces of embedding_dim=16"),
    (MAPPED, change_config(sizes=[]), "'sizes' must be 1 to 256"),
    (MAPPED, change_config(sizes=[330]), "'num_subspaces' must have 1 entries, got 3"),
    (MAPPED, change_config(sizes=[9, 21, -300]), r"'sizes'\[2\]"),
    (MAPPED, change_config(sizes=[330, HUGE, -HUGE]), r"'sizes'\[1\]"),
    (MAPPED, change_config(sizes=330), "'sizes' must be a list, got 330"),
    (MAPPED, change_config(sizes=[10, 20, 300]), "must have shape"),
    (MAPPED, change_config(sizes=[1] * 300 + [30]), "'sizes' must be 1 to 256"),
    (MAPPED, change_config(num_subspaces=[4, 2]), "'num_subspaces' must have 3 entries, got 2"),
    (MAPPED, change_config(num_subspaces=[4, 2, 0]), r"'num_subspaces'\[2\]"),
    (MAPPED, change_config(num_subspaces=[4, 2, 3]), "tier 2 has 3 subspaces of embedding_dim=8"),
    (MAPPED, change_config(num_subspaces=[4, 4, 1]), "'codes.1' must have shape"),
    (MAPPED, change_config(num_centroids=[8, 8, 9]), "tier 2 has num_centroids=9, but its codebook holds 8"),
    (MAPPED, change_config(num_centroids=[8, 8, 70_000]), r"'num_centroids'\[2\] must be .* got 70000"),
    (MAPPED, change_config(num_centroids=[8, 8, 5]), "'codes.2' holds code 7, but num_centroids is 5"),
    (MAPPED, change_config(num_centroids=[2, 8, 8]), "'codes.0' must have shape"),
    (MAPPED, change_config(codebook_of=[0, 0, 1]), "'centroids.1' is missing"),
    (MAPPED, change_config(codebook_of=[1, 1, 1]), "leaves out a codebook"),
    (MAPPED, change_config(codebook_of=[0, 0, 3]), r"'codebook_of'\[2\]"),
    (MAPPED, change_config(centroid_dtype="float64"), "'centroid_dtype' must be one of"),
    (MAPPED, change_config(centroid_dtype=["float32"]), "'centroid_dtype' must be one of"),
    (MAPPED, change_config(centroid_dtype="float16"), "'centroids.0' must be torch.float16, got torch.float32"),
    (MAPPED, change_config(padding_idx=330), "'padding_idx' must be a whole number in 0 .. 329"),
    (MAPPED, change_config(padding_idx=-1), "'padding_idx'"),
    (MAPPED, change_config(order=None), "unexpected tensors"),
    (MAPPED, change_config(order=[0, 1, 1]), "'order' must be null or the tiers"),
    (MAPPED, change_config(order=[0, 1]), "'order' must be null or the tiers"),
    (MAPPED, change_config(order=[[0], 1, 2]), "'order' must be null or the tiers"),
    (MAPPED, change_config(order=[2, 1.0, 0]), "'order' must be null or the tiers"),
    (MAPPED, change_config(order=[1, 2, 0]), "tier_map.bits.1' must have shape|marks"),
    *[
        (MAPPED, drop_part(name), f"tensor '{name}' is missing")
        for name in ("codes.0", "centroids.0", "tier_map.bits.0", "tier_map.ranks.1")
    ],
    (MAPPED, add_part, r"unexpected tensors \['bonus'\]"),
    (MAPPED, set_part("codes.0", dtype="I8"), "'codes.0' must be torch.uint8, got torch.int8"),
    (MAPPED, set_part("codes.0", shape=[18]), r"'codes.0' must have shape \(9, 2\), got \(18,\)"),
    (MAPPED, set_part("codes.0", shape=[2, 9]), r"'codes.0' must have shape \(9, 2\), got \(2, 9\)"),
    (MAPPED, set_part("codes.0", shape=[9, 1], content=b"\0" * 9), "'codes.0' must have shape"),
    (MAPPED, set_part("codes.0", dtype="BOOL"), "'codes.0' has type BOOL, which no table holds"),
    (MAPPED, set_part("centroids.0", dtype="I32"), "'centroids.0' must be torch.float32"),
    (MAPPED, set_part("centroids.0", shape=[64]), r"'centroids.0' must have shape \(any, any, any\)"),
    (MAPPED, set_part("centroids.0", shape=[8, 4, 2]), "tier 0 has 4 subspaces of embedding_dim=8"),
    (MAPPED, set_part("centroids.0", shape=[0, 8, 2], content=b""), "'centroids.0' must have shape"),
    (MAPPED, patch("centroids.0", 8, struct.pack("<f", float("nan"))), "'centroids.0' holds NaN or inf"),
    (MAPPED, patch("centroids.0", 8, struct.pack("<f", float("-inf"))), "'centroids.0' holds NaN or inf"),
    (MAPPED, patch("codes.0", 1, b"\xff"), "'codes.0' has spare bits that are not zero"),
    (MAPPED, patch("tier_map.ranks.0", 4, b"\xff\xff\xff\x7f"), "'tier_map.ranks.0' disagrees"),
    (MAPPED, patch("tier_map.ranks.0", 4, b"\xff\xff\xff\xff"), "'tier_map.ranks.0' disagrees"),
    (MAPPED, patch("tier_map.bits.0", 0, b"\xff" * 8), "'tier_map.bits.0' marks [0-9]+ ids, but tier 2 has 300"),
    (INT8, patch("scales.0", 0, struct.pack("<f", float("nan"))), "'scales.0' holds NaN"),
    (INT8, patch("scales.0", 0, struct.pack("<f", -1.0)), "'scales.0' holds a scale that is not positive"),
    (INT8, drop_part("scales.0"), "'scales.0' is missing"),
    (INT8, set_part("scales.0", shape=[2, 2]), r"'scales.0' must have shape \(4,\)"),
    (INT8, change_config(centroid_dtype="float32"), "'centroids.0' must be torch.float32, got torch.int8"),
]


@pytest.mark.parametrize(("case", "change", "match"), BAD_FILES)
def test_refuses(case, change, match, tmp_path):
    path = tmp_path / "a"
    save(build(case).table, path)
    metadata, parts = read_raw(path)
    config = json.loads(metadata["config"])
    before = metadata["config"]
    change(metadata, config, parts)
    if metadata.get("config") == before:
        metadata["config"] = json.dumps(config)
    write_raw(path, metadata, parts)
    with pytest.raises(ArtifactError, match=match) as caught:
        load(path)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2100


def test_refuses_a_bit_moved_past_the_end(tmp_path):
    """The number of ones is right, but one of them is beyond the last id."""
    built = build(CASES[0])
    path = tmp_path / "a"
    save(built.table, path)
    metadata, parts = read_raw(path)
    dtype, shape, content = parts["tier_map.bits.0"]
    word = int.from_bytes(content, "little")
    lowest = word & -word
    parts["tier_map.bits.0"] = (dtype, shape, (word ^ lowest ^ (1 << 60)).to_bytes(len(content), "little"))
    write_raw(path, metadata, parts)
    with pytest.raises(ArtifactError, match="marks ids beyond the 47"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\0" * 8, b"\xff" * 100, b"PK\x03\x04" * 10, b"{}" * 50])
def test_refuses_what_is_not_safetensors(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        load(tmp_path / "a")


def test_refuses_every_truncation(tmp_path):
    save(build(CASES[0]).table, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        (tmp_path / "b").write_bytes(content[:length])
        with pytest.raises(ArtifactError):
            load(tmp_path / "b")
    (tmp_path / "b").write_bytes(content + b"x")
    with pytest.raises(ArtifactError):
        load(tmp_path / "b")


def test_refuses_absurd_shapes(tmp_path):
    for shape in ([0, 2**63], [2**62, 0, 2**62], [2**40, 2**40]):
        write_raw(tmp_path / "a", {"format": "mgqe", "version": "1"}, {"codes.0": ("U8", shape, b"")})
        with pytest.raises(ArtifactError):
            load(tmp_path / "a")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(data, tmp_path):
    """Any bytes flipped: either an ArtifactError, or a table whose every row can be looked up."""
    case = data.draw(st.sampled_from([c for c in CASES if c.name != "wide codes"]))
    path = tmp_path / f"{case.name}"
    if not path.exists():
        save(build(case).table, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged").write_bytes(content)
    try:
        table = load(tmp_path / "damaged")
    except ArtifactError:
        return
    assert table.to_dense().shape == (table.num_embeddings, table.embedding_dim)
    table.codebook_stats()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_configurations_are_refused_or_harmless(data, tmp_path):
    case = data.draw(st.sampled_from([MAPPED, *MIXED]))
    path = tmp_path / case.name
    if not path.exists():
        save(build(case).table, path)
    metadata, parts = read_raw(path)
    config = json.loads(metadata["config"])
    small = st.integers(-2, 10)
    value = SCALARS | small | st.lists(SCALARS | small, max_size=4) | st.permutations(range(3))
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(value)
    metadata["config"] = json.dumps(config)
    write_raw(tmp_path / "damaged", metadata, parts)
    try:
        table = load(tmp_path / "damaged")
    except ArtifactError:
        return
    assert table.to_dense().shape == (table.num_embeddings, table.embedding_dim)
