"""The C interface is usable from C, C++ and Rust: the examples find what mgqe finds."""

import os
import shutil
import subprocess

import pytest
import torch
from paths import EXAMPLES

import mgqe
import mgqe_reader

FOLDER = EXAMPLES / "reader"
LIBRARY = mgqe_reader.library_path()
RUSTC = shutil.which("rustc") or shutil.which("rustc", path=os.path.expanduser("~/.cargo/bin"))


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """A collection of 60 items, and its folder."""
    vectors = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    items = mgqe.Collection(mgqe.compress_table(vectors, "60%"), [f"item-{i}é" for i in range(60)])
    folder = tmp_path_factory.mktemp("collection")
    items.save(folder)
    return items, folder


def build(command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def run(*command):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(LIBRARY.parent), "DYLD_LIBRARY_PATH": str(LIBRARY.parent)}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def in_c(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("c") / "similar"
    warnings = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    build([compiler, *warnings, FOLDER / "similar.c", "-I", mgqe_reader.include_folder(), LIBRARY, "-o", program])
    return program


def test_c_finds_what_mgqe_finds(in_c, items):
    collection, folder = items
    expected = collection.table.topk(collection.table.lookup([17])[0], 5, exclude=[[17]], score="cosine")
    status, printed, _ = run(in_c, folder, 17, 5)
    assert status == 0
    lines = [line.split() for line in printed.splitlines()]
    assert [int(row) for row, _ in lines] == expected.ids.tolist()
    assert [score for _, score in lines] == [f"{score:.6f}" for score in expected.scores]


def test_c_says_what_is_wrong(in_c, items, tmp_path):
    (tmp_path / "broken").write_bytes(b"broken")
    assert run(in_c, tmp_path / "none", 1, 1)[::2] == (1, f"similar: {tmp_path}/none: No such file or directory\n")
    assert "not a whole safetensors file" in run(in_c, tmp_path / "broken", 1, 1)[2]
    assert "id 60 is out of range (valid ids: 0 to 59)" in run(in_c, items[1], 60, 1)[2]
    assert "k must be in 1 .. 60" in run(in_c, items[1], 1, 61)[2]


def test_the_header_is_c_plus_plus_as_well(tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "use.cpp"
    source.write_text('#include "mgqe.h"\nint main() { return mgqe_reader_version() - MGQE_READER_VERSION; }\n')
    build([compiler, "-Wall", "-Werror", source, "-I", mgqe_reader.include_folder(), LIBRARY, "-o", tmp_path / "use"])
    assert run(tmp_path / "use")[0] == 0


@pytest.mark.skipif(RUSTC is None, reason="no rustc")
def test_rust_finds_what_mgqe_finds(items, tmp_path):
    collection, folder = items
    program = tmp_path / "similar"
    flags = ["--edition", "2021", "-D", "warnings", "-L", LIBRARY.parent, "-l", "dylib=mgqe_native"]
    build([RUSTC, FOLDER / "similar.rs", *flags, "-o", program])
    expected = collection.neighbours("item-17é", 5)
    status, printed, _ = run(program, folder, "item-17é", 5)
    assert status == 0
    lines = [line.split() for line in printed.splitlines()]
    assert [name for name, _ in lines] == expected.ids
    assert [score for _, score in lines] == [f"{score:.6f}" for score in expected.scores]
    assert run(program, folder, "nobody", 5)[2] == "similar: there is no id nobody\n"
    assert "No such file or directory" in run(program, tmp_path / "none", "item-1", 5)[2]
