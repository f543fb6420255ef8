"""examples/deepctr_deepfm.py with the real DeepCTR-Torch: see the example's docstring for how to install it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from paths import EXAMPLES

pytest.importorskip("deepctr_torch", reason="needs DeepCTR-Torch: see examples/deepctr_deepfm.py")

EXAMPLE = EXAMPLES / "deepctr_deepfm.py"


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(n, (3000,), generator=generator).tolist() for n in (200, 800, 5, 7, 30)]
    rows = [f"{user},{item},1.0,{hour},{day},{city}" for user, item, hour, day, city in zip(*columns, strict=True)]
    (tmp_path / "frappe.csv").write_text("\n".join(["user,item,cnt,daytime,weekday,city", *rows]) + "\n")
    command = [sys.executable, str(EXAMPLE), "--data-dir", str(tmp_path), "--model-dir", str(tmp_path / "model")]
    command += ["--epochs", "1", "--fine-tune", "1", "--out", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    trained, *_, tuned, frozen = run["results"]
    assert frozen["quality"] == tuned["quality"]
    assert frozen["bytes"] < 0.5 * trained["bytes"]
    assert run["versions"]["deepctr-torch"]
