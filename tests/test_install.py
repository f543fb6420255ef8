"""Building and installing: in place, as a wheel for any Python 3, and without a compiler."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from paths import GOLDEN, ROOT

import mgqe

pytestmark = pytest.mark.slow
SOURCES = ["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"]
USE = (
    "import torch; from mgqe import ops; "
    "a = ops.assign(torch.eye(4), torch.eye(4).reshape(1, 4, 4)); "
    "b = ops.unique(torch.tensor([2, 2]), 3); print(ops.native_isa(), a.flatten().tolist())"
)

# Without OpenMP the library has threads of its own, which several callers share, and which a fork does not have.
IN_THREADS = """
import os, signal, sys, threading
sys.modules["torch"] = None
import numpy as np
import mgqe_reader
one, several = (mgqe_reader.load(sys.argv[1], threads=threads) for threads in (1, 4))
ids = np.arange(100_000) % len(one)
queries = one.lookup(ids[:9])
def answers(table):
    bags = table.bag(ids.reshape(-1, 100))
    return [each.tobytes() for each in (table.lookup(ids), bags, *table.topk(queries, 5))]
expected, found = answers(one), []
callers = [threading.Thread(target=lambda: found.append(answers(several))) for _ in range(5)]
for each in callers:
    each.start()
for each in callers:
    each.join()
assert found == [expected] * 5
assert not os.path.exists("/proc") or len(os.listdir("/proc/self/task")) > 1
if (child := os.fork()) == 0:
    signal.alarm(60)  # instead of hanging
    os._exit(0 if answers(several) == expected else 2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.fixture
def project(tmp_path):
    """A clean copy of what a build reads."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    if not (copy / "README.md").exists():
        (copy / "README.md").write_text("mgqe\n")
    built = shutil.ignore_patterns("*.so", "*.dylib", "__pycache__", "*.egg-info", "build")
    for name in ("src", "reader"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    return copy


def run(command, cwd, **environment):
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def use(path, tmp_path):
    """What the package under ``path`` answers, and the warnings it gives."""
    done = run([sys.executable, "-W", "always", "-c", USE], tmp_path, PYTHONPATH=str(path))
    return done.stdout.strip(), done.stderr


def wheel(project, **environment):
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "out", "."]
    run(pip, project, **environment)
    (made,) = (project / "out").glob("*.whl")
    return made


def compiler():
    return next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


@needs_compiler
def test_wheel_serves_any_python(project, tmp_path):
    made = wheel(project)
    _, _, python, abi, platform = made.stem.split("-")
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    names = zipfile.ZipFile(made).namelist()
    libraries = [name for name in names if name.endswith((".so", ".dylib"))]
    assert len(libraries) == 1
    assert libraries[0].startswith("mgqe/ops/libmgqe_native")
    assert "mgqe/py.typed" in names
    assert [name for name in names if name.endswith((".cpp", ".h"))] == ["mgqe_reader/include/mgqe.h"]
    zipfile.ZipFile(made).extractall(tmp_path / "site")
    answer, errors = use(tmp_path / "site", tmp_path)
    assert answer.endswith("[0, 1, 2, 3]")
    assert not answer.startswith("none")
    assert "RuntimeWarning" not in errors


@needs_compiler
def test_wheel_of_the_reader_is_whole_without_mgqe(project, tmp_path):
    made = wheel(project / "reader")
    assert made.name.startswith("mgqe_reader-")
    site = tmp_path / "site"
    zipfile.ZipFile(made).extractall(site)
    assert {path.name.partition("-")[0] for path in site.iterdir()} == {"mgqe_reader"}
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 2_000_000
    (library,) = (path for path in site.rglob("*") if path.suffix in (".so", ".dylib"))
    assert b"libgomp" not in library.read_bytes()  # which a wheel for Linux would bring with it, 0.3 MB more
    read = "import sys; sys.modules['torch'] = None; import mgqe_reader as r; print(r.load(sys.argv[1]).lookup(4))"
    table = str(GOLDEN / "compact-small.safetensors")
    assert run([sys.executable, "-c", read, table], tmp_path, PYTHONPATH=str(site)).stdout == "[ 0.25 -0.25]\n"
    rows = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    mgqe.save(mgqe.compress_table(rows, "20%"), tmp_path / "table")
    run([sys.executable, "-c", IN_THREADS, str(tmp_path / "table")], tmp_path, PYTHONPATH=str(site))


def test_wheel_of_the_reader_needs_a_compiler(project):
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "out", "."]
    done = subprocess.run(
        pip, cwd=project / "reader", env={**os.environ, "CXX": "/nonexistent/c++"}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "mgqe-reader needs a C++ compiler" in done.stdout + done.stderr


def test_wheel_without_a_compiler_falls_back_with_one_warning(project, tmp_path):
    made = wheel(project, CXX="/nonexistent/c++")
    assert made.stem.endswith("py3-none-any")
    zipfile.ZipFile(made).extractall(tmp_path / "site")
    answer, errors = use(tmp_path / "site", tmp_path)
    assert answer == "none [0, 1, 2, 3]"
    assert errors.count("RuntimeWarning") == 1


def test_compiler_that_fails_does_not_fail_the_build(project):
    done = run([sys.executable, "setup.py", "build_ext", "--inplace"], project, CXX="false")
    assert "native kernels not built" in done.stderr
    assert not list(project.rglob("libmgqe_native*"))


@needs_compiler
def test_build_in_place_and_rebuild(project, tmp_path):
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    run(build, project)
    assert len(list((project / "src/mgqe/ops").glob("libmgqe_native*"))) == 1
    assert not use(project / "src", tmp_path)[0].startswith("none")
    # A later build that fails takes the stale library away.
    run(build, project, CXX="false")
    assert use(project / "src", tmp_path)[0].startswith("none")


@needs_compiler
@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable_install(project, tmp_path, mode):
    target = tmp_path / "venv"
    run([sys.executable, "-m", "venv", "--system-site-packages", str(target)], tmp_path)
    python = target / ("Scripts" if os.name == "nt" else "bin") / "python"
    # The environment running the tests may itself be virtual: its packages are put on the path by name.
    packages = os.pathsep.join(entry for entry in sys.path if entry.endswith("site-packages"))
    install = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    run([*install, "-e", ".", "--config-settings", f"editable_mode={mode}"], project, PYTHONPATH=packages)
    done = run([str(python), "-W", "always", "-c", USE], tmp_path, PYTHONPATH=packages)
    assert done.stdout.strip().endswith("[0, 1, 2, 3]")
    assert not done.stdout.startswith("none")


@needs_compiler
def test_source_distribution_holds_the_kernels(project, tmp_path):
    run([sys.executable, "setup.py", "-q", "sdist"], project)
    (made,) = (project / "dist").glob("*.tar.gz")
    shutil.unpack_archive(made, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    expected = {p.name for p in (ROOT / "src/mgqe/ops/native").iterdir()}
    assert {p.name for p in (unpacked / "src/mgqe/ops/native").iterdir()} == expected
    reader = {p.name for p in (ROOT / "src/mgqe_reader/native").iterdir()}
    assert {p.name for p in (unpacked / "src/mgqe_reader/native").iterdir()} == reader
    assert (unpacked / "src/mgqe_reader/include/mgqe.h").is_file()
    assert (unpacked / "reader/setup.py").is_file()
