"""Builds mgqe-reader's library from mgqe's sources, by mgqe's own setup.py. Without a compiler it is an error."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import setup
from setuptools.errors import CompileError

spec = spec_from_file_location("setup_of_mgqe", Path(__file__).resolve().parent.parent / "setup.py")
assert spec is not None
assert spec.loader is not None
of_mgqe = module_from_spec(spec)
sys.modules[spec.name] = of_mgqe
spec.loader.exec_module(of_mgqe)


class BuildLibrary(of_mgqe.BuildNative):
    """The same build; but nothing here works without the library, and OpenMP's would come with it in wheels."""

    with_openmp = False

    def run(self) -> None:
        super().run()
        if not [name for name in self.get_outputs() if os.path.exists(name)]:
            raise CompileError("mgqe-reader needs a C++ compiler: put one on the path, or set CXX")


setup(
    ext_modules=[of_mgqe.library("mgqe_reader.libmgqe_native")],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": of_mgqe.PlatformWheel},
)
