"""The kernels for GPUs compile for one that is not there, with the instructions that exact results ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install triton"),
]


@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles(capability, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "tests" / "support" / "compile_kernels.py"), str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert all(min(kernel["cubin bytes"]) > 0 for kernel in kernels.values())  # in every shape
    # Compiled once for all numbers of ids: by default Triton does it again for 1 and for multiples of 16.
    assert not any(kernel["specialised"] for kernel in kernels.values())
    # Distances: products and sums rounded one by one, as in the twin. A matrix of floats: one rounding for both.
    assert not any(kernel["fma.f64"] for kernel in kernels.values())
    through_a_matrix = ["transform", "transform with scales", "mean of codes, a matrix", "sum of codes, whole numbers"]
    assert [name for name, kernel in kernels.items() if kernel["fma.f32"]] == through_a_matrix
    assert kernels["decode whole"]["tensor cores"] > 0
    assert kernels["decode floats"]["tensor cores"] > 0
    assert kernels["keep"]["loads of 16 bytes"] > 0
    assert kernels["keep of tiers"]["loads of 16 bytes"] > 0
