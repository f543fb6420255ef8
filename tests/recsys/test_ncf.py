"""The published split of NCF: its files, its negatives, and errors for other files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from mgqe.recsys.data import ncf
from mgqe.recsys.data.datasets import DATA_DIR_VARIABLE, PUBLISHED, load_data
from mgqe.recsys.data.ncf import load_published, read_published
from mgqe.recsys.tasks.metrics import sampled_ranks
from mgqe.recsys.tasks.ranking import RankingTask
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig

# Users 3 and 8; films come in the order 50, 7, 9, 30, so that NCF's item 0 is film 50.
PAIRS = {"userID": ["3", "3", "3", "8", "8", "8", "8"], "movieID": ["50", "7", "9", "7", "30", "50", "9"]}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """Two users, four films, three negatives."""
    monkeypatch.setattr(ncf, "NUM_NEGATIVES", 3)
    paths = (tmp_path / "pairs.parquet", tmp_path / "test.rating", tmp_path / "test.negative")
    pl.DataFrame(PAIRS).write_parquet(paths[0])
    paths[1].write_text("0\t1\t5\t99\n1\t3\t4\t98\n")
    paths[2].write_text("(0,1)\t3\t0\t1\n(1,3)\t3\t2\t0\n")
    return paths


def test_ids_are_ranks_of_appearance(files: tuple[Path, Path, Path]) -> None:
    data = read_published(*files)
    films = data.interactions.item_ids
    assert [films.id(row) for row in data.test_items.tolist()] == [7, 30]
    assert [[films.id(row) for row in line] for line in data.test_negatives.tolist()] == [[30, 50, 7], [30, 9, 50]]
    assert [data.interactions.user_ids.id(row) for row in (0, 1)] == [3, 8]


def test_the_split_by_hand(files: tuple[Path, Path, Path]) -> None:
    data = read_published(*files)
    films = data.interactions.item_ids
    chosen = set()
    for seed in range(20):
        split = data.split(seed)
        assert torch.equal(split.test.items, data.test_items)
        assert split.test.users.tolist() == [0, 1]
        assert split.train_offsets.tolist() == [0, 1, 3]
        valid = [films.id(row) for row in split.valid.items.tolist()]
        first, *second = (films.id(row) for row in split.train_items.tolist())
        assert {first, valid[0]} == {50, 9}
        assert {*second, valid[1]} == {7, 50, 9}
        chosen.add(tuple(valid))
    assert len(chosen) == 6  # each of 2 x 3
    assert torch.equal(data.split(5).valid.items, data.split(5).valid.items)


def test_a_negative_that_is_the_positive_is_no_rival() -> None:
    scores = torch.tensor([0.0, 5.0, 1.0, 5.0])  # of items; items 1 and 3 draw
    positives, negatives = torch.tensor([1, 1, 0]), torch.tensor([[1, 0, 2], [1, 3, 2], [0, 1, 2]])
    ranks = sampled_ranks(lambda users, items: scores[items], torch.arange(3), positives, negatives)
    assert ranks.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("which", "text", "message"),
    [
        (1, "0\t1\t5\t99\n", "expected 2 lines, one per user, got 1"),
        (1, "0\t1\t5\t99\n1\t3\n", "line 2: expected 4 whole numbers, got 2"),
        (1, "1\t1\t5\t99\n0\t3\t4\t98\n", "line 1: expected users 0, 1, 2, ... in turn"),
        (1, "0\t3\t5\t99\n1\t3\t4\t98\n", "line 1: expected the test item of test.rating"),
        (1, "0\t1\t5\t99\n1\t4\t4\t98\n", "line 2: expected items below 4"),
        (2, "(0,1)\t3\t0\t1\n(1,3)\t3\t2\t2\n", "line 2: expected 3 different negatives"),
        (2, "(0,1)\t3\t0\n(1,3)\t3\t2\t0\n", "line 1: expected 5 whole numbers, got 4"),
        (2, "(0,1)\t3\t0\t9\n(1,3)\t3\t2\t0\n", "line 1: expected items below 4"),
    ],
)
def test_files_that_do_not_fit(files: tuple[Path, Path, Path], which: int, text: str, message: str) -> None:
    files[which].write_text(text)
    with pytest.raises(ValueError, match=message):
        read_published(*files)


def test_a_test_item_that_is_not_the_users(files: tuple[Path, Path, Path]) -> None:
    files[1].write_text("0\t3\t5\t99\n1\t3\t4\t98\n")
    files[2].write_text("(0,3)\t3\t0\t1\n(1,3)\t3\t2\t0\n")
    with pytest.raises(ValueError, match=r"line 1: expected a test item among the user's own in pairs\.parquet"):
        read_published(*files)


def test_missing_and_other_files(files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files[0].parent
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="ml-1m-ncf needs a data directory"):
        load_published("ml-1m-ncf")
    with pytest.raises(ValueError, match=r"ratings_user_movie_pairs.parquet; to obtain it: write the users"):
        load_published("ml-1m-ncf", folder)
    known = PUBLISHED["ml-1m-ncf"]
    renamed = tuple(replace(file, file=path.name) for file, path in zip(known.files, files, strict=True))
    monkeypatch.setitem(PUBLISHED, "ml-1m-ncf", replace(known, files=renamed))
    with pytest.raises(ValueError, match=r"pairs.parquet is another edition of ml-1m-ncf: expected sha256 3b07b6e6"):
        load_published("ml-1m-ncf", folder)
    files[2].unlink()
    with pytest.raises(ValueError, match=r"expected the file .*test.negative; to obtain it: download"):
        load_published("ml-1m-ncf", folder)


def test_it_has_no_order_of_time() -> None:
    with pytest.raises(ValueError, match="no order of time: it is for --task ranking alone"):
        load_data("ml-1m-ncf")
    with pytest.raises(ValueError, match="for --task ranking alone"):
        RunData.load(TrainConfig(task="sequential", model="sasrec", data="ml-1m-ncf"))


@pytest.mark.skipif(not os.environ.get(DATA_DIR_VARIABLE), reason=f"needs the real data: set {DATA_DIR_VARIABLE}")
def test_the_published_files() -> None:
    task = RunData.load(TrainConfig(model="neumf", data="ml-1m-ncf")).task
    assert isinstance(task, RankingTask)
    assert task.split.train_users.numel() == 1_000_209 - 2 * 6040
    assert (task.split.num_users, task.split.num_items) == (6040, 3706)
    assert int((task.test.negatives == task.test.items[:, None]).sum()) == 156
    assert not bool((task.valid.items == task.test.items).any())
    assert task.ids["item"].id(int(task.test.items[0])) == 48  # NCF's item 25
