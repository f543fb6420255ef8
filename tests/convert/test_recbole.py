"""examples/recbole_bpr.py with the real RecBole, which has an environment of its own: see the example's docstring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import EXAMPLES

pytest.importorskip("recbole", reason="needs RecBole in an environment of its own: see examples/recbole_bpr.py")

EXAMPLE = EXAMPLES / "recbole_bpr.py"


def interactions(folder: Path) -> None:
    """A data set in RecBole's format: 300 users in two groups, each with a taste of its own among 600 items."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(300):
        items = torch.randperm(300, generator=generator)[:20] + 300 * (user % 2)
        lines += [f"u{user}\ti{int(item)}\t5\t{when}" for when, item in enumerate(items)]
    (folder / "tiny.inter").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_the_example_runs(model, tmp_path):
    interactions(tmp_path / "tiny")
    command = [sys.executable, str(EXAMPLE), "--data-dir", str(tmp_path), "--dataset", "tiny", "--model", model]
    command += ["--epochs", "2", "--fine-tune", "1", "--out", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    trained, _, tuned, frozen = run["results"]
    assert frozen["quality"] == tuned["quality"]
    assert frozen["bytes"] == tuned["bytes"] < 0.5 * trained["bytes"]
    assert set(trained["quality"]) == {"recall@10", "ndcg@10", "hit@10"}
    assert run["versions"]["recbole"]
