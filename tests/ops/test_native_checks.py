"""tests/native/check_topk.cpp: all searches agree under memory checkers and on an emulated arm64 processor."""

import os
import shutil
import subprocess
import sys

import pytest
from paths import ROOT

SOURCE = ROOT / "tests/native/check_topk.cpp"
NATIVE = ROOT / "src/mgqe/ops/native"
ASAN = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1"
ARM64 = "aarch64-linux-gnu-g++"


def build(folder, compiler, flags):
    """The library and the program that checks it, both with these flags."""
    env = {**os.environ, "CXX": compiler, "MGQE_CXXFLAGS": flags}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)], cwd=ROOT, env=env, check=True
    )
    library = folder / "mgqe/ops/libmgqe_native.so"
    assert library.exists()
    program = folder / "check"
    command = [compiler, "-std=c++17", *flags.split(), f"-I{NATIVE}", str(SOURCE), str(library)]
    subprocess.run([*command, f"-Wl,-rpath,{library.parent}", "-o", str(program)], check=True)
    return program


def needs(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}")


def check(command, **env):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "searches agree" in done.stdout


@pytest.mark.slow
@needs("g++")
def test_no_sanitizer_complains(tmp_path):
    check([build(tmp_path, "g++", ASAN), "100"], ASAN_OPTIONS="detect_leaks=0")


@pytest.mark.slow
@needs("g++", "valgrind")
def test_valgrind_does_not_complain(tmp_path):
    # Valgrind emulates AVX2 and no more, which the library finds out by itself.
    check(["valgrind", "-q", "--error-exitcode=9", build(tmp_path, "g++", "-g"), "12"])


@pytest.fixture(scope="module")
def arm64_program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("arm64"), ARM64, "-g")


@pytest.mark.slow
@needs(ARM64, "qemu-aarch64")
@pytest.mark.parametrize("processor", ["cortex-a57", "max"])
def test_neon_agrees(arm64_program, processor):
    """On a processor without instructions for four products of bytes, and on one with them."""
    check(["qemu-aarch64", "-cpu", processor, "-L", "/usr/aarch64-linux-gnu", arm64_program, "40"])
