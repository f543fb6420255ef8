"""mgqe.torchrec on several processes: as one process, on other numbers of them, and when something goes wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import EXAMPLES, SUPPORT

import mgqe

pytestmark = pytest.mark.slow
torchrec = pytest.importorskip("torchrec", reason="needs torchrec and fbgemm-gpu: see docs/torchrec.md")
sharded = pytest.importorskip("mgqe.torchrec")

WORKER = SUPPORT / "torchrec_worker.py"


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(mgqe.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}


def torchrun(ranks: int, out: Path, *arguments: str, fails: bool = False) -> str:
    """Run the worker on so many ranks; what it printed."""
    out.mkdir(parents=True, exist_ok=True)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [sys.executable, *launch, str(WORKER), str(out), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr


def result(out: Path, rank: int = 0) -> dict:
    return json.loads((out / f"result-{rank}.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of 60 steps on one, two and four ranks; two saves a checkpoint after 30."""
    folder = tmp_path_factory.mktemp("runs")
    for ranks in (1, 2, 4):
        torchrun(ranks, folder / str(ranks), "train", *(["save=30"] if ranks == 2 else []))
    return folder


def same_run(first: Path, second: Path) -> None:
    """Losses within 1e-5, centroids within 1e-5, codes but for one in a thousand: ties that rounding decides."""
    one, other = result(first)["losses"], result(second)["losses"]
    last = min(len(one), len(other))
    assert other[-last:] == pytest.approx(one[-last:], rel=1e-5)
    for name in ("user", "item"):
        a, b = mgqe.load(first / "frozen" / name), mgqe.load(second / "frozen" / name)
        ids = torch.arange(a.num_embeddings)
        assert (a.codes(ids) == b.codes(ids)).float().mean() > 0.999
        for ours, theirs in zip(a.to_tensors()[0].values(), b.to_tensors()[0].values(), strict=True):
            if ours.is_floating_point():
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert torch.equal(a.locate(ids)[0], b.locate(ids)[0])
    assert result(second)["scores"] == pytest.approx(result(first)["scores"], abs=1e-4)


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_train_as_one(runs, ranks):
    same_run(runs / "1", runs / str(ranks))
    assert result(runs / str(ranks))["losses"] == result(runs / str(ranks), ranks - 1)["losses"]
    assert result(runs / "1")["losses"][-1] < 0.8 * result(runs / "1")["losses"][0]
    assert max(result(runs / str(n))["gap"] for n in (1, 2, 4)) < 1e-6  # frozen against trained
    files = {path.name for path in (runs / str(ranks) / "frozen" / "item").iterdir()}
    assert len(files) == ranks + 1


def test_tables_on_one_rank_each(runs, tmp_path):
    torchrun(2, tmp_path, "train", "sharding=table_wise")
    same_run(runs / "1", tmp_path)


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_checkpoint_resumes_on_another_number_of_ranks(runs, tmp_path, ranks):
    torchrun(ranks, tmp_path, "resume", "first=30", f"checkpoint={runs / '2' / 'checkpoint'}")
    same_run(runs / "2", tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("other=rows", "counts: rank 1 has num_embeddings = 4,002, but rank 0 has 4,001"),
        ("other=config", "rank 1 has user: capacity = D = (8, 8), K = (32, 8)"),
        ("other=counts", "rank 1 has user: tiers = (150, 1350)"),
        ("sharding=column_wise", "table 'user' is sharded by columns, 4 of 16 on this rank"),
        ("sharding=data_parallel", "table 'user' is sharded as 'data_parallel'"),
    ],
)
def test_ranks_that_do_not_fit_together_say_so(tmp_path, option, message):
    torchrun(2, tmp_path, "train", option, fails=True)
    for rank in range(2):
        assert re.search(rf"ValueError: .*{re.escape(message)}", result(tmp_path, rank)["error"])


def test_an_unknown_id_on_one_rank_is_refused_on_all_and_breaks_nothing(tmp_path):
    torchrun(2, tmp_path, "bad id")
    for rank in range(2):
        assert result(tmp_path, rank)["error"].startswith("rank 1: feature 'bought' has id 4006, but table 'item'")
        assert len(result(tmp_path, rank)["losses"]) == 5


def test_torchrun_ends_all_ranks_when_one_is_killed(tmp_path):
    printed = torchrun(2, tmp_path, "kill", fails=True)
    # Not which one is the root cause: rank 0, whose connection breaks, may end before torchrun looks.
    assert re.search(r"rank +: 1 [^\[]*Signal 9 \(SIGKILL\)", printed), printed[-4000:]


@pytest.mark.parametrize("mode", ["kill", "freeze kill", "hang"])
def test_a_rank_whose_fellow_is_lost_says_so(tmp_path, mode):
    """Without torchrun, which would end it first."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun does
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), mode, *(["timeout=20"] if mode == "hang" else [])],
            env={
                **environment(),
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "RANK": str(rank), "WORLD_SIZE": "2"},
                **{"LOCAL_RANK": str(rank), "TORCHELASTIC_USE_AGENT_STORE": "True"},
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert mode == "hang" or started[1].wait(timeout=300) == -9
        printed = started[0].communicate(timeout=300)[1]
    finally:
        for process in started:
            process.kill()
    assert started[0].returncode == 1
    assert "RankLostError: rank 0 of 2: another rank ended or did not answer" in printed
    if mode == "freeze kill":
        sharded.load(tmp_path / "frozen")  # what was frozen before
        for name in ("user", "item"):
            assert len([p for p in (tmp_path / "frozen" / name).iterdir() if p.name.startswith("shard")]) == 2


@pytest.mark.parametrize(("rank", "file"), [(1, "item/"), (0, "table.safetensors"), (0, "collection.json")])
def test_a_full_disk_while_freezing(tmp_path, rank, file):
    torchrun(2, tmp_path, "disk full", f"full={rank}", f"file={file}")
    for here in range(2):
        error = result(tmp_path, here)["error"]
        assert error.startswith(f"rank {rank}: [Errno 28]")
        assert "No space left on device" in error
    frozen = sharded.load(tmp_path / "frozen")  # what was frozen before
    assert frozen.tables["item"].num_embeddings == 4001
    for name in ("user", "item"):
        assert len(list((tmp_path / "frozen" / name).iterdir())) == 3


def test_the_example(tmp_path):
    path = EXAMPLES / "torchrec_dlrm.py"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(path), str(tmp_path / "model"), "--steps", "120"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"AUC trained 0\.[6-9]", done.stdout), done.stdout


def test_all_ranks_have_the_metric_of_all_batches(tmp_path):
    arguments = ("metric", "warmup=10", "steps=11")
    for ranks in (1, 2):
        torchrun(ranks, tmp_path / str(ranks), *arguments)
    whole, first, second = (result(tmp_path / ranks, rank) for ranks, rank in (("1", 0), ("2", 0), ("2", 1)))
    assert first["sources"] == {"user": "gradients", "item": "gradients"}
    assert first["metrics"] == second["metrics"]
    for name, matrix in whole["metrics"].items():
        # Each rank has half of a batch, over which its loss is the mean: gradients are twice as large.
        torch.testing.assert_close(torch.tensor(first["metrics"][name]), 4 * torch.tensor(matrix), rtol=1e-3, atol=1e-7)
        assert 2 * first["lookups"][name] == pytest.approx(whole["lookups"][name])


# ---- a budget ------------------------------------------------------------------------------------------------

BUDGET = ("budget=30%", "steps=40")  # ten of them warm-up


@pytest.fixture(scope="module")
def budget_runs(tmp_path_factory):
    """Runs of 40 steps by one rank, and by two, which save a checkpoint before or after they plan."""
    folder = tmp_path_factory.mktemp("budget")
    torchrun(1, folder / "1", "train", *BUDGET)
    for step in (5, 30):
        torchrun(2, folder / str(step), "train", *BUDGET, f"save={step}")
    return folder


def tiers_of(run: dict) -> dict:
    return {name: plan["tiers"] for name, plan in run["plans"].items()}


def test_all_ranks_have_one_plan(budget_runs):
    whole, first, second = (result(budget_runs / name, rank) for name, rank in (("1", 0), ("30", 0), ("30", 1)))
    assert first["plans"] == second["plans"]
    assert [len(tiers) for tiers in tiers_of(first).values()] == [2, 2]
    assert tiers_of(first) == tiers_of(whole)  # bits differ: each shard has a header
    full = 4 * (1500 * 16 + 4001 * 8)
    assert 0.95 * 0.3 * full < sum(plan["nbytes"] for plan in first["plans"].values()) <= 0.3 * full
    assert all(first["nbytes"][name] <= plan["nbytes"] for name, plan in first["plans"].items())
    for run in (whole, first, second):
        assert run["equals frozen"]
        assert run["gap"] < 1e-6
    # Rounding decides some centroids of k-means.
    assert first["losses"][:10] == pytest.approx(whole["losses"][:10], rel=1e-6)
    assert first["losses"] == pytest.approx(whole["losses"], rel=2e-2)


def test_tables_with_a_budget_on_one_rank_each(budget_runs, tmp_path):
    torchrun(2, tmp_path, "train", *BUDGET, "sharding=table_wise")
    first, second = result(tmp_path), result(tmp_path, 1)
    assert first["plans"] == second["plans"]
    assert tiers_of(first) == tiers_of(result(budget_runs / "30"))
    assert first["equals frozen"]
    assert second["equals frozen"]


@pytest.mark.parametrize(("step", "near"), [(5, 5e-2), (30, 1e-5)], ids=["before the plan", "after"])
def test_a_checkpoint_with_a_budget_resumes_on_another_number_of_ranks(budget_runs, tmp_path, step, near):
    run = budget_runs / str(step)
    torchrun(1, tmp_path, "resume", *BUDGET, f"first={step}", f"checkpoint={run / 'checkpoint'}")
    resumed, whole = result(tmp_path), result(run)
    assert resumed["losses"] == pytest.approx(whole["losses"][step:], rel=near)
    assert resumed["equals frozen"]
    if step == 30:
        parts = ("nbytes", "tiers", "bits")  # the centroids have trained on
        assert all(
            resumed["plans"][name][part] == plan[part] for name, plan in whole["plans"].items() for part in parts
        )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("other=budget", "rank 1 has user: budget = 26,883 bytes for several tables, but rank 0 has 67,209 bytes"),
        ("other=counts", "rank 1 has user: counts = "),
        ("other=plan", "rank 0: nothing fits"),
    ],
)
def test_ranks_that_do_not_agree_on_a_budget_say_so(tmp_path, option, message):
    torchrun(2, tmp_path, "train", *BUDGET, option, fails=True)
    for rank in range(2):
        assert re.search(rf"ValueError: .*{re.escape(message)}", result(tmp_path, rank)["error"])
