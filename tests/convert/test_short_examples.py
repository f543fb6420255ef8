"""The short examples with the real packages, which have environments of their own: make test-third-party and make
test-torchrec."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import pytest
import torch
from paths import EXAMPLES

SHORT = ("recbole_models.py", "fuxictr_dcn.py", "deepctr_short.py", "torchrec_short.py")


@pytest.mark.parametrize("name", SHORT)
def test_it_has_fewer_than_forty_lines(name):
    """Lines of code: neither empty nor of the docstring."""
    text = (EXAMPLES / name).read_text()
    docstring = ast.parse(text).body[0]
    code = [line for line in text.splitlines()[docstring.end_lineno :] if line.strip()]
    assert len(code) < 40


def run(folder, name, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("model", ["BPR", "LightGCN", "SASRec"])
def test_recbole(model, tmp_path):
    pytest.importorskip("recbole", reason="needs RecBole: see examples/recbole_models.py")
    draw = torch.Generator().manual_seed(0)
    (tmp_path / "tiny").mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(300):  # in two groups, each with a taste of its own among 600 items
        items = torch.randperm(300, generator=draw)[:20] + 300 * (user % 2)
        lines += [f"u{user}\ti{int(item)}\t{when}" for when, item in enumerate(items)]
    (tmp_path / "tiny" / "tiny.inter").write_text("\n".join(lines) + "\n")
    text = run(tmp_path, "recbole_models.py", model, str(tmp_path / "tiny"), "2")
    figures = dict(re.findall(r"^(.+): NDCG@10 ([\d.]+)$", text, re.MULTILINE))
    assert list(figures) == ["trained", "through the codes", "frozen"]
    assert figures["frozen"] == figures["through the codes"]
    assert re.search(r"^[12] of [1-3] compressed", text, re.MULTILINE)


@pytest.mark.slow
def test_fuxictr(tmp_path):
    pytest.importorskip("fuxictr", reason="needs FuxiCTR: see examples/fuxictr_dcn.py")
    text = run(tmp_path, "fuxictr_dcn.py")
    figures = {line.split(" Ordered")[0]: line for line in text.splitlines() if "'AUC'" in line}
    assert list(figures) == ["trained", "compressed", "through the codes", "frozen"]
    auc = {title: float(re.search(r"'AUC', (?:np\.float64\()?([\d.]+)", line)[1]) for title, line in figures.items()}
    assert auc["frozen"] == auc["through the codes"]
    assert auc["compressed"] > auc["trained"] - 0.02 > 0.6
    assert "3 of 3 compressed" in text


@pytest.mark.slow
def test_deepctr(tmp_path):
    pytest.importorskip("deepctr_torch", reason="needs DeepCTR-Torch: see examples/deepctr_short.py")
    text = run(tmp_path, "deepctr_short.py")
    auc = dict(re.findall(r"^(.+) \{'auc': ([\d.]+)", text, re.MULTILINE))
    assert list(auc) == ["trained", "compressed", "through the codes", "frozen"]
    assert auc["frozen"] == auc["through the codes"]
    assert float(auc["compressed"]) > float(auc["trained"]) - 0.02 > 0.6
    assert "5 of 6 compressed" in text


@pytest.mark.slow
def test_torchrec(tmp_path):
    pytest.importorskip("torchrec", reason="needs torchrec: see docs/torchrec.md")
    text = run(tmp_path, "torchrec_short.py")
    loss = dict(re.findall(r"^(.+): log loss ([\d.]+)$", text, re.MULTILINE))
    assert list(loss) == ["trained", "compressed", "through the codes", "frozen"]
    assert loss["frozen"] == loss["through the codes"]
    assert float(loss["compressed"]) < float(loss["trained"]) + 0.02
    assert "3 of 3 compressed" in text
