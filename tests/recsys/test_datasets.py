"""Known data sets, the default split, and the planted data set."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mgqe.cli.counts_files import Counts
from mgqe.recsys.data.datasets import DATA_DIR_VARIABLE, DATASETS, DIVIDED, load_data, planted
from mgqe.recsys.data.interactions import load_interactions
from mgqe.recsys.data.splits import leave_one_out
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig


def test_leave_one_out_by_hand(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("1 5\n1 6\n1 7\n1 8\n2 5\n2 6\n3 9\n3 5\n3 6\n")
    data = load_interactions(tmp_path / "data.txt")
    split = leave_one_out(data)  # items 5, 6, 7, 8, 9 are rows 0 to 4; user 2 has too few to be evaluated
    assert split.train_users.tolist() == [0, 0, 1, 1, 2]
    assert split.train_items.tolist() == [0, 1, 0, 1, 4]
    assert split.train_offsets.tolist() == [0, 2, 4, 5]
    assert split.test.users.tolist() == [0, 2]
    assert split.valid.items.tolist() == [2, 0]
    assert split.test.items.tolist() == [3, 1]
    assert split.user_counts.tolist() == [2, 2, 1]
    assert split.item_counts.tolist() == [2, 2, 0, 0, 1]


def test_nobody_to_judge(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("1 5\n1 6\n2 5\n")
    with pytest.raises(ValueError, match="no user has 3 interactions"):
        leave_one_out(load_interactions(tmp_path / "data.txt"))


def test_planted_is_what_it_says() -> None:
    data = planted(num_users=300, num_items=400, per_user=20)
    again = planted(num_users=300, num_items=400, per_user=20)
    assert torch.equal(data.users, again.users)
    assert torch.equal(data.items, again.items)
    assert not torch.equal(data.items[:50], planted(300, 400, per_user=20, seed=1).items[:50])
    assert data.num_users == 300
    assert int(data.offsets.diff().min()) >= 5
    counts = torch.bincount(data.items).sort(descending=True).values.double()
    assert counts[: len(counts) // 10].sum() > 0.2 * counts.sum()


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no data set 'ml-1n' \(did you mean 'ml-1m'\?\): expected planted, ml-1m"):
        load_data("ml-1n")
    with pytest.raises(ValueError, match="no data set 'movielens': expected planted, ml-1m"):
        load_data("movielens")
    with pytest.raises(ValueError, match="frappe has no order of time: it is for --task ctr alone"):
        load_data("frappe")
    with pytest.raises(ValueError, match="does not exist"):
        load_data("my/clicks.csv")


def test_missing_files_say_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=r"--data-dir DIR or set MGQE_DATA_DIR.*https://grouplens.org"):
        load_data("ml-1m")
    with pytest.raises(ValueError, match=r"ml-1m/ml-1m_sasrec.txt; to obtain it: download"):
        load_data("ml-1m", tmp_path)
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m/ml-1m_sasrec.txt").write_text("1 1\n1 2\n1 3\n")
    with pytest.raises(ValueError, match=r"another edition of ml-1m.*pass the file itself: --data"):
        load_data("ml-1m")


def test_a_known_set_loads(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("1 1\n1 2\n1 3\n")
    digest = hashlib.sha256((tmp_path / "f.txt").read_bytes()).hexdigest()
    known = replace(DATASETS["ml-1m"], file="f.txt", sha256=digest)
    assert len(known.load(tmp_path)) == 3


SIZES = {
    "ml-1m": (6040, 3416, 999_611),
    "ml-100k": (943, 1682, 100_000),
    "amazon-apps": (87_271, 13_209, 752_937),
    "amazon-games": (31_013, 23_715, 287_107),
}


@pytest.mark.skipif(DATA_DIR_VARIABLE not in os.environ, reason=f"{DATA_DIR_VARIABLE} names no folder of data sets")
@pytest.mark.parametrize("name", SIZES)
def test_real_data(name: str) -> None:
    if not (Path(os.environ[DATA_DIR_VARIABLE]) / DATASETS[name].file).is_file():
        pytest.skip(f"{DATASETS[name].file} is not in {DATA_DIR_VARIABLE}")
    data = load_data(name)
    assert (data.num_users, data.num_items, len(data)) == SIZES[name]
    assert data.num_repeats == 0
    split = leave_one_out(data)
    assert len(data) - len(split.train_users) == 2 * len(split.test.users)


# ---- published in three parts ------------------------------------------------------------------------------------


@pytest.fixture
def divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`beauty-split` with other files: user 1 has two test items, one of which (9) has no training interaction."""
    known, files = DIVIDED["beauty-split"], []
    texts = ("0 5 1\n0 6 1\n0 8 1\n1 5 1\n1 7 1\n", "0 7 1\n", "1 6 1\n1 9 1\n")
    for file, text in zip(known.files, texts, strict=True):
        path = tmp_path / file.file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        files.append(replace(file, sha256=hashlib.sha256(text.encode()).hexdigest()))
    monkeypatch.setitem(DIVIDED, "beauty-split", replace(known, files=tuple(files)))
    return tmp_path


def test_the_parts_are_those_of_the_files_and_nothing_is_left_out(divided: Path) -> None:
    data = RunData.load(TrainConfig(data="beauty-split", data_dir=str(divided), eval_negatives=1))
    split, task = data.task.split, data.task
    assert task.ids["item"].ids.to_list() == [5, 6, 7, 8, 9]
    assert (split.train_users.tolist(), split.train_items.tolist()) == ([0, 0, 0, 1, 1], [0, 1, 3, 0, 2])
    assert (split.valid.users.tolist(), split.valid.items.tolist()) == ([0], [2])
    assert (split.test.users.tolist(), split.test.items.tolist()) == ([1], [1, 4])
    assert split.summary["rule"] == "as published"
    assert split.summary["cold"]["test"] == {"users": 0, "items": 1, "interactions": 1}
    assert split.several_items


def test_its_training_items_are_counted_for_a_plan(divided: Path) -> None:
    """Of items 5 to 9, the last of which is in the test alone, and of users 0 and 1."""
    assert Counts("beauty-split", data_dir=str(divided)).read(None).tolist() == [2, 1, 1, 1, 0]
    assert Counts("beauty-split", field="user", data_dir=str(divided)).read(None).tolist() == [3, 2]


def test_several_test_items_are_judged_among_the_first_20_too(divided: Path) -> None:
    task = RunData.load(TrainConfig(data="beauty-split", data_dir=str(divided), eval_negatives=1)).task
    ranks = torch.tensor([1, 15])
    found = task.catalogue_figures(ranks, task.test, "full_")
    assert found["full_recall@10"] == 0.5
    assert found["full_recall@20"] == 1.0
    assert found["full_hr@10"] == found["full_hr@20"] == 1.0
    assert found["full_ndcg@10"] < found["full_ndcg@20"] < 1.0


def test_other_files_and_other_rules_are_refused(divided: Path) -> None:
    settings = {"data": "beauty-split", "data_dir": str(divided)}
    with pytest.raises(ValueError, match="published split and no order of time: it is for --task ranking alone"):
        RunData.load(TrainConfig(task="sequential", model="sasrec", **settings))
    with pytest.raises(ValueError, match="beauty-split has a published split: leave --split ratio:80/10/10 out"):
        TrainConfig(split="ratio:80/10/10", **settings)
    (divided / "beauty-split/valid.txt").write_text("0 6 1\n")
    with pytest.raises(ValueError, match=r"another edition of beauty-split.*--train FILE --valid FILE --test FILE"):
        RunData.load(TrainConfig(**settings))
    (divided / "beauty-split/valid.txt").unlink()
    with pytest.raises(ValueError, match=r"expected the file .*valid.txt; to obtain it: take the published split"):
        RunData.load(TrainConfig(**settings))


DIVIDED_SIZES = {"beauty-split": (52_204, 57_289, 284_530), "ml-1m-split": (6_039, 3_628, 590_733)}


@pytest.mark.skipif(DATA_DIR_VARIABLE not in os.environ, reason=f"{DATA_DIR_VARIABLE} names no folder of data sets")
@pytest.mark.parametrize("name", DIVIDED_SIZES)
def test_real_parts(name: str) -> None:
    if not (Path(os.environ[DATA_DIR_VARIABLE]) / DIVIDED[name].files[0].file).is_file():
        pytest.skip(f"{DIVIDED[name].files[0].file} is not in {DATA_DIR_VARIABLE}")
    split = RunData.load(TrainConfig(data=name)).task.split
    assert (split.num_users, split.num_items, len(split.train_users)) == DIVIDED_SIZES[name]
    assert split.summary["repeats_left_out"] == 0
