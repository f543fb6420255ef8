"""Known data sets, the default split, and the planted data set."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mgqe.recsys.data.datasets import DATA_DIR_VARIABLE, DATASETS, load_data, planted
from mgqe.recsys.data.interactions import load_interactions
from mgqe.recsys.data.splits import leave_one_out


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
