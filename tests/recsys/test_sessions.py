"""Sessions: what comes again stays in its place, the last item is judged from those before it, whole sessions split."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from recsys_data import TINY, tiny_config
from torch import Tensor, nn
from typer.testing import CliRunner

from mgqe.cli.app import app
from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.held_out import HeldOut, Split, judge_last
from mgqe.recsys.data.interactions import Interactions, load_interactions
from mgqe.recsys.data.splits import split, split_parts
from mgqe.recsys.tasks.account import data_note
from mgqe.recsys.tasks.ranking import RankingTask
from mgqe.recsys.tasks.sequential import SequentialTask

CLICKS = "session_id,item,time\ns,a,1\ns,b,2\ns,a,3\ns,b,4\nt,b,5\nt,a,6\nt,a,7\nu,a,8\n"


def sessions(**of: str) -> Interactions:
    """Sessions of one-letter items, one after the other in time."""
    rows = [(name, item) for name, items in of.items() for item in items]
    frame = pl.DataFrame(rows, schema=["session", "item"], orient="row")
    return Interactions.from_frame(frame.with_row_index("time"), keep_repeats=True)


def letters(data: Interactions, items: Tensor) -> str:
    return "".join(str(data.item_ids.id(row)) for row in items.tolist())


def by_session(data: Interactions, part: HeldOut) -> dict[object, str]:
    """Session -> its items in a part."""
    return {
        data.user_ids.id(int(session)): letters(data, items)
        for session, items in zip(part.users, part.items.split(part.offsets.diff().tolist()), strict=True)
    }


def before(data: Interactions, divided: Split, test: bool) -> dict[object, str]:
    """Session -> what is read before its judged item."""
    items, offsets = divided.histories(test)
    return {
        data.user_ids.id(int(session)): letters(data, items[offsets[session] : offsets[session + 1]])
        for session in (divided.test if test else divided.valid).users
    }


@pytest.mark.parametrize(("keep", "items"), [(None, "abab"), (True, "abab"), (False, "ab")])
def test_a_file_of_sessions(tmp_path: Path, keep: bool | None, items: str) -> None:
    (tmp_path / "clicks.csv").write_text(CLICKS)
    data = load_interactions(tmp_path / "clicks.csv", keep_repeats=keep)
    assert (data.owner, data.keeps_repeats, data.num_repeats) == ("session", items == "abab", 3)
    assert letters(data, data.items[: data.offsets[1]]) == items


def test_a_named_session_stands_before_a_user(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("user,visit,item\n1,7,a\n1,7,a\n1,8,b\n")
    assert load_interactions(tmp_path / "clicks.csv", keep_repeats=None).owner == "user"
    data = load_interactions(tmp_path / "clicks.csv", columns=Columns(session="visit"), keep_repeats=None)
    assert (data.owner, data.user_ids.ids.to_list(), len(data)) == ("session", [7, 8], 3)


def test_leave_one_out_judges_a_repeat() -> None:
    data, divided = split(sessions(s="abab", t="baa", u="ab", v="b"))
    assert by_session(data, divided.valid) == {"s": "a", "t": "a"}
    assert by_session(data, divided.test) == {"s": "b", "t": "a"}
    assert before(data, divided, test=True) == {"s": "aba", "t": "ba"}
    assert letters(data, divided.train_items) == "abbabb"
    assert divided.summary["too_short"] == 2
    assert divided.summary["sessions_with_items"] == {"valid": 2, "test": 2}


def test_time_divides_whole_sessions() -> None:
    # Times 0 to 14. Sessions end at 3, 6, 9, 11, 12 and 14; the latest third are e and f, the latest tenth before is d.
    data, divided = split(sessions(a="abab", b="bca", c="cab", d="bc", e="c", f="ac"), "latest:34%")
    assert letters(data, divided.train_items) == "ababbcacab"
    assert by_session(data, divided.valid) == {"d": "c"}
    assert by_session(data, divided.test) == {"f": "c"}  # nothing precedes the only item of e
    assert before(data, divided, test=True) == {"f": "a"}


def test_cold_items_are_left_out_before_the_last_is_judged() -> None:
    data, divided = split(sessions(a="abab", b="bca", c="cab", d="bax", e="abxx"), "latest:20%")
    assert by_session(data, divided.valid) == {"d": "a"}
    assert before(data, divided, test=False) == {"d": "b"}
    assert by_session(data, divided.test) == {"e": "b"}
    assert before(data, divided, test=True) == {"e": "a"}
    assert divided.summary["cold"]["test"] == {"items": 1, "interactions": 2}


def test_files_of_sessions_and_one_that_goes_on() -> None:
    data, divided = split_parts(sessions(s="abc", t="cb"), sessions(s="ab", v="ca"), sessions(s="cc", w="b"))
    assert letters(data, divided.train_items) == "abccb"
    assert by_session(data, divided.valid) == {"s": "b", "v": "a"}
    assert before(data, divided, test=False) == {"s": "abca", "v": "c"}
    assert by_session(data, divided.test) == {"s": "c"}
    assert before(data, divided, test=True) == {"s": "abcabc"}


def test_judge_last_by_hand() -> None:
    users = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    labels = torch.tensor([0, 1, 2, 2, 2, 1, 1])
    assert judge_last(users, labels).tolist() == [0, 1, 4, 2, 4, 3, 1]


class SameAgain(nn.Module):
    """A model that expects the item before the last one again."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.item = nn.Embedding.from_pretrained(vectors)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        hidden: Tensor = self.item(items)[lengths.cumsum(0) - 2]
        return hidden


def test_an_item_that_was_had_is_ranked() -> None:
    data = sessions(s="abab", t="cdcd", u="efgh")
    task = SequentialTask(RankingTask.prepare(data, seed=1, eval_negatives=3))
    found = task.evaluate(SameAgain(torch.eye(data.num_items)))  # type: ignore[arg-type]
    assert found["full_hr@10"] == 1.0
    # s and t come again; of u the seven others, with equal scores or more, are all ranked before.
    assert found["full_ndcg@10"] == pytest.approx((1 + 1 + 1 / torch.tensor(9.0).log2().item()) / 3)


def write_sessions(folder: Path) -> Path:
    """Sessions that go round in a circle of 12 items and come back to the first."""
    path, time, lines = folder / "clicks.csv", 0, ["session,item,time"]
    for session in range(60):
        for step in range(3 + session % 3):
            time += 1
            lines.append(f"{session},{(session + step % 3) % 12},{time}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_command_says_what_became_of_the_data(tmp_path: Path) -> None:
    path, out = write_sessions(tmp_path), str(tmp_path / "out")
    quick = [f"--set={name}={getattr(TINY, name)}" for name in ("dim", "max_epochs", "anneal_epochs")]
    result = CliRunner().invoke(
        app, ["train", "--data", str(path), "--model", "sasrec", "--embedding", "full", "--out", out, *quick,
              "--set=eval_negatives=5"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert (
        "60 sessions, 12 items, 240 interactions; 60 repeats stay; 20 too short to train on; nothing left out" in said
    )
    assert "user" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session_column": "visit"}, "--session-column visit is for models that read a sequence"),
        ({"repeats": "keep"}, "--repeats keep is for models that read a sequence"),
        ({"repeats": "first"}, "--repeats must be one of keep, drop, got first"),
        ({"session_column": "a", "user_column": "b"}, "give one of them"),
    ],
)
def test_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(Path("clicks.csv"), **changes)


def test_data_note() -> None:
    summary = {"users": 1200, "items": 30, "interactions": 5000, "repeats_left_out": 7}
    split_summary = {
        "too_short": 3,
        "left_out_by_k_core": {"users": 1, "items": 2, "interactions": 9},
        "cold": {"valid": {"interactions": 4}, "test": {"interactions": 1}},
        "cold_rule": "left out: ...",
    }
    assert data_note(summary, split_summary) == (
        "1,200 users, 30 items, 5,000 interactions; 3 users too short to be judged; left out: 7 repeats (the first of "
        "each item stays); 1 users, 2 items, 9 interactions by the k-core; 5 interactions to judge, of users or items "
        "that are not in training"
    )
    # A model of sequences might have had them.
    assert data_note({**summary, "untrained": 0}, {}) == (
        "1,200 users, 30 items, 5,000 interactions; left out: 7 repeats (the first of each item stays; --repeats keep "
        "leaves them in)"
    )
