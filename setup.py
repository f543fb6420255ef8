"""Builds the optional native kernels; everything declarative is in pyproject.toml.

The library is plain C ABI and links neither torch nor Python, so the wheel is tagged ``py3-none-<platform>``:
one wheel serves every Python and every torch. A missing or failing compiler never fails the installation:
the package then runs on its pure-torch twins, and says so once when first used.

Environment: ``CXX`` names the compiler, ``MGQE_CXXFLAGS`` adds flags (say ``-Wall -fsanitize=address``),
``MGQE_BUILD_NATIVE=0`` skips the build.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(os.path.relpath(Path(__file__).parent))  # reader/setup.py uses this file as well
KERNELS, READER = ROOT / "src/mgqe/ops/native", ROOT / "src/mgqe_reader"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
# -ffp-contract=off: no fused multiply-add, so that every instruction set and the torch twin round alike.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
]
AVX2 = ["-mavx2", "-mf16c", "-mbmi", "-mbmi2", "-mpopcnt"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
X86_FLAGS = {
    "isa_avx2.cpp": [*AVX2, "-mfma"],
    "isa_avx512.cpp": [*AVX2, "-mfma", *AVX512],
    "level_products.cpp": [*AVX2, "-mfma", *AVX512, "-mavx512vbmi", "-mavx512vnni"],
    "topk_avx2.cpp": [*AVX2, "-mfma"],
    "topk_vbmi.cpp": [*AVX2, "-mfma", *AVX512, "-mavx512vbmi"],
    "whole_avx2.cpp": [*AVX2, "-mfma"],
    "whole_vbmi.cpp": [*AVX2, "-mfma", *AVX512, "-mavx512vbmi", "-mavx512vnni"],
}
ARM64_FLAGS = {"whole_neon.cpp": [], "whole_dotprod.cpp": ["-march=armv8.2-a+dotprod"]}
# The reader refuses files by exceptions, none of which leaves it.
READER_FLAGS = ["-fexceptions", f"-I{KERNELS}", f"-I{READER / 'include'}"]
# The translation units of each kind of processor, with their flags.
ISA_FLAGS = {"x86_64": X86_FLAGS, "amd64": X86_FLAGS, "aarch64": ARM64_FLAGS, "arm64": ARM64_FLAGS}


def find_compiler() -> list[str]:
    """The C++ compiler as an argument list: ``$CXX`` if set, else the first of c++, g++, clang++."""
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise CompileError(f"no C++ compiler found (looked for {' '.join(named) or 'c++, g++, clang++'})")


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}")
    if done.stdout.strip():
        print(done.stdout)


def openmp_flags(compiler: list[str], scratch: Path) -> list[str]:
    """``["-fopenmp"]`` if that compiles and links, else nothing: the kernels then have threads of their own."""
    probe = scratch / "openmp_probe.cpp"
    probe.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
    try:
        run([*compiler, "-fopenmp", str(probe), "-o", str(scratch / "openmp_probe")])
    except (CompileError, OSError):
        return []
    return ["-fopenmp"]


def target_machine(compiler: list[str]) -> str:
    """The processor that the compiler makes code for, which is another one where it is a cross compiler."""
    done = subprocess.run([*compiler, "-dumpmachine"], capture_output=True, text=True)
    machine = done.stdout.split("-")[0] if done.returncode == 0 and done.stdout else platform.machine()
    return machine.lower()


def sources_of_library() -> list[Path]:
    """The kernels, and what reads files without Python."""
    return [*sorted(KERNELS.glob("*.cpp")), *sorted((READER / "native").glob("*.cpp"))]


def own_flags(source: Path, machine: str) -> list[str] | None:
    """The flags that a translation unit has and others have not; None if it is for other processors."""
    if source.parent.parent == READER:
        return READER_FLAGS
    of_machine = ISA_FLAGS.get(machine, {})
    elsewhere = any(source.name in flags for flags in ISA_FLAGS.values())
    return of_machine.get(source.name, None if elsewhere else [])


def compile_native(output: Path, with_openmp: bool = True) -> None:
    """Compiles every translation unit with its own instruction-set flags and links the shared library.

    with_openmp: where the compiler has it.

    Raises:
        CompileError: with the command and its output, if there is no compiler or it fails.
    """
    compiler = find_compiler()
    extra = shlex.split(os.environ.get("MGQE_CXXFLAGS", ""))
    machine = target_machine(compiler)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        openmp = openmp_flags(compiler, scratch) if with_openmp else []
        flags_of = {source: own_flags(source, machine) for source in sources_of_library()}
        units = [(source, flags) for source, flags in flags_of.items() if flags is not None]
        objects = [str(scratch / f"{source.stem}-{number}.o") for number, (source, _) in enumerate(units)]
        commands = [
            [*compiler, *FLAGS, *openmp, *flags, *extra, "-c", str(source), "-o", made]
            for (source, flags), made in zip(units, objects)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, commands))
        # Linked beside the target and renamed, so that a running process never maps a half-written library.
        fresh = output.with_name(output.name + ".new")
        strip = ["-s"] if sys.platform == "linux" and not extra else []  # names that nobody reads, 5% of the bytes
        # Threads wait in its code for as long as the process lives.
        stay = ["-Wl,-z,nodelete"] if sys.platform == "linux" else []
        run([*compiler, "-shared", "-pthread", *stay, *strip, *openmp, *extra, *objects, "-o", str(fresh)])
        os.replace(fresh, output)


class BuildNative(build_ext):
    """Builds the library where setuptools would put a Python extension module."""

    with_openmp = True

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + SUFFIX

    def run(self) -> None:
        # Not super().run(): that asks for Python's own compiler configuration, of no use here.
        for ext in self.extensions:
            root = Path("src") if self.inplace else Path(self.build_lib)
            target = root / self.get_ext_filename(ext.name)
            if os.environ.get("MGQE_BUILD_NATIVE") == "0":
                continue
            try:
                compile_native(target, self.with_openmp)
            except (CompileError, OSError) as error:
                # A library left from an earlier build may not match these sources.
                target.unlink(missing_ok=True)
                print(f"WARNING: native kernels not built, mgqe will run on pure torch.\n{error}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return [name for name in super().get_outputs() if os.path.exists(name)]

    def get_output_mapping(self) -> dict[str, str]:
        return {made: kept for made, kept in super().get_output_mapping().items() if os.path.exists(kept)}


class PlatformWheel(bdist_wheel):
    """Tags the wheel for the platform but for any Python 3, or for any platform if it holds no library."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform_tag = super().get_tag()
        built = self.get_finalized_command("build_ext").get_outputs()
        return "py3", "none", platform_tag if built else "any"


def library(name: str) -> Extension:
    """The library under a dotted name, as setuptools knows it."""
    return Extension(
        name,
        sources=[str(path) for path in sources_of_library()],
        depends=[str(path) for path in sorted([*KERNELS.glob("*.h"), *READER.rglob("*.h")])],
        optional=True,
    )


if __name__ == "__main__":
    setup(
        ext_modules=[library("mgqe.ops.libmgqe_native")],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
    )
