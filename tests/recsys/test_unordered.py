"""Files without an order of time: a random item of each user is held out, and one line says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recsys_data import tiny_config

from mgqe.recsys.data.interactions import load_interactions
from mgqe.recsys.data.splits import split, split_parts
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import data_notes

ROWS = "".join(f"u{user},{item}\n" for user in range(40) for item in range(12))


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Forty users who all take the items 0 to 11, in this order, and an item 12 that nobody takes twice."""
    path = tmp_path / "lists.csv"
    path.write_text("user,item\n" + ROWS + "x,12\nx,13\nx,14\n")
    return path


def config_of(path: Path, **changes: object) -> TrainConfig:
    return tiny_config(path, eval_negatives=2, **changes)


def test_what_is_ordered(tmp_path: Path) -> None:
    files = {
        "a.csv": ("user,item\n1,2\n", False),
        "b.csv": ("user,item,time\n1,2,3\n", True),
        "c.inter": ("user_id:token\titem_id:token\n1\t2\n", False),
        "d.txt": ("1 2\n1 3\n", True),
        "e.txt": ("1 2 3\n2 3\n", True),
    }
    for name, (text, ordered) in files.items():
        (tmp_path / name).write_text(text)
        assert load_interactions(tmp_path / name).ordered == ordered, name


def test_a_random_item_is_held_out(lists: Path) -> None:
    data = RunData.load(config_of(lists))
    tested = data.task.split.test.items
    assert tested.numel() == 41
    assert torch.unique(tested).numel() >= 8  # the last item of all users but x is one and the same
    assert not bool((tested == data.task.split.valid.items).any())
    notes = data_notes(config_of(lists), data)
    assert notes[1].endswith(
        "split random: a random item of each user is held out (order: random, seed 0; no column of times); "
        "41 of 41 users are judged"
    )


def test_one_split_for_all_seeds(lists: Path) -> None:
    splits = [RunData.load(config_of(lists, seed=seed)).task.split.test.items for seed in (1, 2)]
    assert torch.equal(*splits)
    asked = RunData.load(config_of(lists, split="random")).task.split.test.items
    assert torch.equal(asked, splits[0])


def test_the_order_of_the_file_if_it_is_asked_for(lists: Path) -> None:
    data = RunData.load(config_of(lists, split="leave-one-out"))
    assert set(data.task.ids["item"].ids.gather(data.task.split.test.items.numpy()).to_list()) == {11, 14}
    assert (
        "the last item of each user is held out (order: the file's; no column of times; --split random where that is "
        "no order of time)" in data_notes(config_of(lists), data)[1]
    )


def test_ratios_are_of_a_random_order(lists: Path) -> None:
    data = load_interactions(lists)
    _, divided = split(data, "ratio:80/10/10")
    assert torch.unique(divided.test.items).numel() > 5
    assert divided.summary["order"] == "random, seed 0; no column of times"


def test_sequential_models_take_the_order_of_the_file(lists: Path) -> None:
    data = RunData.load(config_of(lists, task="sequential", model="sasrec"))
    assert set(data.task.ids["item"].ids.gather(data.task.split.test.items.numpy()).to_list()) == {11, 14}


def test_a_random_validation_item_of_files_without_times(lists: Path) -> None:
    data = load_interactions(lists)
    (lists.parent / "test.csv").write_text("user,item\nx,5\n")
    _, divided = split_parts(data, None, load_interactions(lists.parent / "test.csv"))
    assert divided.summary["valid"] == "a random (seed 0) training item of each user with two or more"
    assert torch.unique(divided.valid.items).numel() >= 8


@pytest.mark.parametrize(("task", "model"), [("sequential", "sasrec"), ("ctr", "wide_deep")])
def test_random_is_for_models_that_rank(lists: Path, task: str, model: str) -> None:
    with pytest.raises(ValueError, match="--split random holds out any item of a user"):
        config_of(lists, task=task, model=model, split="random")
