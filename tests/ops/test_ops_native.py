"""Loading the native library: forced instruction sets, switching it off, and what happens without it."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from mgqe import ops
from mgqe.ops import _library as native

SOURCE = Path(native.__file__).parents[2]
USE = (
    "import torch; from mgqe import ops; "
    "codes = ops.assign(torch.eye(4), torch.eye(4).reshape(1, 4, 4)); "
    "ops.assign(torch.eye(4), torch.eye(4).reshape(1, 4, 4)); "
    "print(ops.native_isa(), codes.flatten().tolist())"
)


def run(code, **environment):
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def forget_library(monkeypatch):
    """Lets a test load the library anew, also where MGQE_LIBRARY names one; afterwards the loaded one is back."""
    monkeypatch.delenv("MGQE_LIBRARY", raising=False)
    native.library.cache_clear()
    yield
    monkeypatch.undo()
    native.library.cache_clear()


def test_switched_off_by_the_environment_without_a_warning():
    done = run(USE, MGQE_NATIVE="0")
    assert done.stdout.split("\n")[0] == "none [0, 1, 2, 3]", done.stderr
    assert "mgqe" not in done.stderr


@pytest.mark.skipif(not ops.native_available(), reason="the native library is not built")
def test_forced_by_the_environment():
    assert run(USE, MGQE_ISA="scalar").stdout.split("\n")[0] == "scalar [0, 1, 2, 3]"
    done = run(USE, MGQE_ISA="sse9")
    assert done.returncode != 0
    assert "must be one of scalar, avx2, avx512, neon or auto, got 'sse9'" in done.stderr


def test_missing_library_warns_once_and_falls_back(forget_library, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_LIBRARY", tmp_path / "libmgqe_native.so")
    monkeypatch.setenv("MGQE_NATIVE", "1")
    rows, centroids = torch.randn(5, 8), torch.randn(2, 9, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        codes = ops.assign(rows, centroids)
        assert torch.equal(ops.assign(rows, centroids), codes)
        ops.unique(torch.tensor([1, 2, 1]), 5)
        assert not ops.native_available()
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "was not built" in str(caught[0].message)
    for part in (
        "C++ compiler",
        "takes about 18 times as long",
        "pip install --force-reinstall --no-deps --no-cache-dir",
    ):
        assert part in str(caught[0].message)


def test_unloadable_library_warns_and_falls_back(forget_library, monkeypatch, tmp_path):
    broken = tmp_path / "libmgqe_native.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "_LIBRARY", broken)
    monkeypatch.setenv("MGQE_NATIVE", "1")
    with pytest.warns(RuntimeWarning, match="could not be loaded"):
        assert not ops.native_available()


@pytest.mark.skipif(not ops.native_available(), reason="the native library is not built")
def test_library_of_another_version_is_not_used(forget_library, monkeypatch):
    monkeypatch.setattr(native, "ABI_VERSION", -1)
    with pytest.warns(RuntimeWarning, match="another version"):
        assert not ops.native_available()


def test_without_the_library_everything_still_works(forget_library, monkeypatch):
    rows, centroids = torch.randn(5, 8), torch.randn(2, 9, 4)
    codes = ops.assign(rows, centroids)
    decoded = ops.gather(codes, centroids)
    native.library.cache_clear()
    monkeypatch.setenv("MGQE_NATIVE", "0")
    assert ops.native_isa() == "none"
    assert not ops.native_openmp()
    assert torch.equal(ops.assign(rows, centroids), codes)
    assert torch.equal(ops.gather(codes, centroids), decoded)
    assert torch.equal(ops.scatter(decoded, codes, None, 2, 9, 4)[1].sum(1), torch.tensor([5.0, 5.0]))
    with pytest.raises(IndexError, match="code 9"):
        ops.gather(codes + 9 - codes, centroids)
    with pytest.raises(IndexError, match="id 7 is out of range"):
        ops.unique(torch.tensor([7]), 7)
    packed = torch.tensor([[1], [2]], dtype=torch.uint8)
    table = ([packed], [torch.randn(1, 16, 4)], [torch.empty(0)], [], [], [], [2], [4], [1], [0], 4, -1)
    assert ops.lookup(torch.tensor([1, 0]), ops.TableBuffers(*table)).shape == (2, 4)
    with pytest.raises(IndexError, match="id 2 is out of range"):
        ops.lookup(torch.tensor([2]), ops.TableBuffers(*table))
    assert ops.max_code(packed, 1, 4) == 2
    with pytest.raises(RuntimeError, match="not loaded"):
        ops.set_native_isa("scalar")


@pytest.mark.skipif(not ops.native_available(), reason="the native library is not built")
def test_unavailable_instruction_set_is_refused():
    before = ops.native_isa()
    foreign = "avx2" if before == "neon" else "neon"
    with pytest.raises(ValueError, match="not available on this processor"):
        ops.set_native_isa(foreign)
    assert ops.native_isa() == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_openmp_runtime_in_the_process():
    # Two copies of libgomp would mean two thread pools that fight for the same processors.
    code = (
        "import torch; from mgqe import ops; ops.native_isa(); "
        "print(len({l.split()[-1] for l in open('/proc/self/maps') if 'libgomp' in l}))"
    )
    assert int(run(code).stdout) <= 1
