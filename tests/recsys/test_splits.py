"""Splits by time, by ratio and by files, worked out by hand; cold ids; and the figures with several test items."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from recsys_data import tiny_config, write_tiny
from torch import Tensor
from typer.testing import CliRunner

from mgqe.cli.app import app
from mgqe.recsys.data.context_rows import ContextRows, split_by_rule
from mgqe.recsys.data.held_out import HeldOut, Split, core, frequent
from mgqe.recsys.data.interactions import Interactions, load_interactions
from mgqe.recsys.data.splits import SplitRule, split, split_parts
from mgqe.recsys.tasks.metrics import RankMetric, catalogue_ranks, head_and_tail_figures, rank_figures, sampled_ranks
from mgqe.recsys.tasks.ranking import RankingTask
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import train_run

DAY = 86_400


def interactions(rows: list[tuple[str, str, float]]) -> Interactions:
    """Interactions from (user, item, time)."""
    return Interactions.from_frame(pl.DataFrame(rows, schema=["user", "item", "time"], orient="row"))


def interactions_in_order(**users: str) -> Interactions:
    """Interactions from each user's items, one letter per item, in order."""
    rows = [(user, item) for user, items in users.items() for item in items]
    return Interactions.from_frame(pl.DataFrame(rows, schema=["user", "item"], orient="row"))


def with_every_item(**users: str) -> Interactions:
    """The interactions with users z1, z2, ... added, who have too few items to be evaluated; no item is cold then."""
    letters = sorted(set("".join(users.values())))
    return interactions_in_order(**users, **{f"z{letter}": letter for letter in letters})


def evaluated_users(found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Parts without the users that `with_every_item` adds."""
    return {part: {u: items for u, items in has.items() if u[0] != "z"} for part, has in found.items()}


def parts(data: Interactions, divided: Split) -> dict[str, dict[str, str]]:
    """Part -> user -> items, as ids of the file."""

    def named(users: Tensor, items: Tensor) -> dict[str, str]:
        found: dict[str, str] = {}
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            name = str(data.user_ids.id(user))
            found[name] = found.get(name, "") + str(data.item_ids.id(item))
        return found

    valid, test = divided.valid, divided.test
    return {
        "train": named(divided.train_users, divided.train_items),
        "valid": named(valid.users[valid.owners], valid.items),
        "test": named(test.users[test.owners], test.items),
    }


TEN = [("uv"[at % 2], "abcabcabca"[at], float(at)) for at in range(10)]  # u: a c b a c, v: b a c b a


def test_the_last_fifth_of_the_time_by_hand() -> None:
    rows = [("u", "a", 0.0), ("u", "b", 1.0), ("v", "a", 2.0), ("v", "c", 5.0), ("u", "c", 7.0), ("v", "b", 9.0)]
    data, divided = split(interactions([*rows, ("u", "d", 10.0)]), "time:20%")  # the test starts at 8
    # Before it there are 5; a tenth, rounded down but one at least, is the one at 7. d is trained by nobody.
    assert parts(data, divided) == {"train": {"u": "ab", "v": "ac"}, "valid": {"u": "c"}, "test": {"v": "b"}}
    assert divided.summary["starts"] == {"valid": 7.0, "test": 8.0}
    assert divided.summary["interactions"] == {"train": 4, "valid": 1, "test": 1}
    assert divided.summary["cold"]["test"] == {"users": 0, "items": 1, "interactions": 1}
    assert [data.item_ids.id(row) for row in range(data.num_items)] == ["a", "b", "c"]


def test_shares_of_the_time_for_both_parts_by_hand() -> None:
    rows = [("u", item, float(at)) for at, item in enumerate("abcdefghijk")]  # times 0 to 10
    rows += [("v", item, 0.5) for item in "abcdefghijk"]
    data, divided = split(interactions(rows), "time:20%/30%")  # validation from 5, the test from 7
    found = parts(data, divided)
    assert (found["train"]["u"], found["valid"], found["test"]) == ("abcde", {"u": "fg"}, {"u": "hijk"})


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
def test_a_date_means_the_same_in_every_unit(unit: int) -> None:
    new_year = datetime(2001, 1, 1, tzinfo=timezone.utc).timestamp()
    rows = [("u", "a", -2.0), ("u", "b", -1.5), ("u", "c", -1.0), ("u", "d", 0.0), ("v", "c", -3.0), ("v", "d", -3.0)]
    data = interactions([(user, item, (new_year + day * DAY) * unit) for user, item, day in rows])
    expected = {"train": {"u": "ab", "v": "cd"}, "valid": {"u": "c"}, "test": {"u": "d"}}
    for rule in ("time:2000-12-31/2001-01-01", "time:2000-12-31T00:00Z/2001-01-01T01:00+01:00"):
        assert parts(*split(data, rule)) == expected


def test_a_column_of_dates_and_a_number(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "user,item,date\nu,a,2001-01-01\nu,b,2001-01-02\nu,c,2001-01-03\nu,d,2001-01-04\nv,c,2001-01-01\nv,d,2001-01-01\n"
    )
    data = load_interactions(path)
    by_date = parts(*split(data, "time:2001-01-03/2001-01-04"))
    assert by_date == {"train": {"u": "ab", "v": "cd"}, "valid": {"u": "c"}, "test": {"u": "d"}}
    moment = datetime(2001, 1, 4, tzinfo=timezone.utc).timestamp()
    assert parts(*split(data, f"time:{moment - DAY:.0f}/{moment:.0f}")) == by_date


def test_the_latest_interactions_never_part_a_moment() -> None:
    rows = [("v", item, 0.0) for item in "abcdefgh"] + [
        ("u", item, time) for item, time in zip("abcdefgh", range(1, 9), strict=True)
    ]
    times = {"f": 7.0, "g": 7.0, "h": 7.0}
    data = interactions([(u, i, times.get(i, t) if u == "u" else t) for u, i, t in rows])
    found = parts(*split(data, "latest:6.25%"))  # one of 16, and those of the same moment
    assert (found["train"]["u"], found["valid"], found["test"]) == ("abcd", {"u": "e"}, {"u": "fgh"})


def test_ratio_by_hand() -> None:
    data = with_every_item(eleven="abcdefghijk", five="abcde", three="abc", two="ab")
    found = evaluated_users(parts(*split(data, "ratio:60/20/20")))
    # Shares are rounded down, to one at least; with fewer than three, all is trained on.
    assert found["test"] == {"eleven": "jk", "five": "e", "three": "c"}
    assert found["valid"] == {"eleven": "hi", "five": "d", "three": "b"}
    assert found["train"] == {"eleven": "abcdefg", "five": "abc", "three": "a", "two": "ab"}
    assert evaluated_users(parts(*split(data, "ratio:0.6/0.2/0.2"))) == found


def test_each_part_has_one_however_small_its_share() -> None:
    data = with_every_item(u="abc")
    for rule in ("ratio:98/1/1", "ratio:1/98/1", "ratio:1/1/98"):
        found = parts(*split(data, rule))
        assert {part: len(found[part]["u"]) for part in found} == {"train": 1, "valid": 1, "test": 1}


def test_leave_one_out_judges_what_is_cold_and_counts_it() -> None:
    data, divided = split(interactions_in_order(u="abc", v="abz"))
    assert parts(data, divided) == {
        "train": {"u": "a", "v": "a"},
        "valid": {"u": "b", "v": "b"},
        "test": {"u": "c", "v": "z"},
    }
    assert divided.summary["cold"]["test"] == {"users": 0, "items": 2, "interactions": 2}
    assert divided.summary["cold_rule"].startswith("judged all the same")


def test_cold_users_and_items_are_left_out_and_counted() -> None:
    rows = [("u", "a", 0), ("u", "b", 1), ("v", "a", 0), ("v", "b", 8), ("u", "x", 9), ("new", "a", 9), ("new", "y", 9)]
    rows += [("u", "c", 0), ("v", "c", 9)]
    data, divided = split(interactions([(u, i, float(t)) for u, i, t in rows]), "time:8/9")
    assert parts(data, divided) == {"train": {"u": "acb", "v": "a"}, "valid": {"v": "b"}, "test": {"v": "c"}}
    assert divided.summary["cold"]["test"] == {"users": 1, "items": 2, "interactions": 3}
    assert (data.num_users, data.num_items, len(data)) == (2, 3, 6)
    assert divided.summary["users_with_items"] == {"valid": 1, "test": 1}


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 12)), min_size=12, max_size=60), st.data()
)
def test_time_never_runs_backwards(rows: list[tuple[int, int, int]], draw: st.DataObject) -> None:
    data = interactions([(f"u{user}", f"i{item}", float(time)) for user, item, time in rows])
    rule = draw.draw(
        st.sampled_from(["time:20%", "time:20%/30%", "latest:25%", "latest:10%/20%", "time:6", "time:4/8"])
    )
    try:
        left, divided = split(data, rule)
    except ValueError:  # a part would be empty, which others test
        return
    assert left.times is not None
    pairs = zip(left.users.tolist(), left.items.tolist(), strict=True)
    times = dict(zip(pairs, left.times.tolist(), strict=True))

    def of(users: Tensor, items: Tensor) -> list[float]:
        return [times[pair] for pair in zip(users.tolist(), items.tolist(), strict=True)]

    valid, test = divided.valid, divided.test
    first = of(divided.train_users, divided.train_items)
    second = of(valid.users[valid.owners], valid.items)
    third = of(test.users[test.owners], test.items)
    assert max(first) < min(second) <= max(second) < min(third)
    assert len(first) + len(second) + len(third) == len(left)
    # Nobody and nothing without a training interaction is left.
    assert set(left.users.tolist()) == set(divided.train_users.tolist())
    assert set(left.items.tolist()) == set(divided.train_items.tolist())


BAD = {
    "tme:20%": "did you mean 'time'?",
    "time": "no such rule",
    "leave-one-out:3": "no such rule",
    "ratio:80/20": "three shares above 0 that sum to 100",
    "ratio:80/0/20": "three shares above 0",
    "ratio:80/10/20": "sum to 100",
    "time:0%": "above 0% and below 100%",
    "time:100%": "above 0% and below 100%",
    "time:50%/50%": "leave something to train on",
    "time:1/2/3": "one value, for the test, or two",
    "time:0.2": "with a per cent sign: 20%",
    "time:2001-13-01": "'2001-13-01' is no share, date or number",
    "time:nan": "no share, date or number",
    "time:": "no share, date or number",
    "latest:2001-01-01": "expected shares such as latest:20%",
}


@pytest.mark.parametrize("rule", BAD)
def test_bad_rules(rule: str) -> None:
    with pytest.raises(ValueError) as error:
        SplitRule.parse(rule)
    assert BAD[rule] in str(error.value)
    with pytest.raises(ValueError, match="--split"):
        TrainConfig(split=rule)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("time:11", "no interaction for the test part: times run from 0 to "),
        ("time:0", "leaves nothing before the test"),
        ("time:8/3", "expected validation to start before the test"),
        ("time:2001-01-01", "no interaction for the test part"),
    ],
)
def test_rules_that_leave_a_part_empty_say_what_times_there_are(rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(interactions(TEN), rule)


def test_rules_that_need_what_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"time:20% needs to know when each interaction was.*--time-column"):
        split(interactions_in_order(u="abc"), "time:20%")
    with pytest.raises(ValueError, match="no user has 3 interactions: ratio needs"):
        split(interactions_in_order(u="ab", v="ab"), "ratio:80/10/10")


def test_files_without_anything_new_are_refused() -> None:
    with pytest.raises(ValueError, match="no interaction for the test part: each of the files must have"):
        split_parts(interactions_in_order(u="ab", v="abc"), interactions_in_order(u="c"), interactions_in_order(u="ac"))
    with pytest.raises(ValueError, match="no interaction for the test part: all others are of users or items without"):
        split_parts(interactions_in_order(u="ab", v="abc"), interactions_in_order(u="c"), interactions_in_order(w="a"))


def test_files_leave_out_repeats_and_what_is_cold() -> None:
    train, valid, test = (
        interactions_in_order(u="ab", v="cd"),
        interactions_in_order(u="c", v="a", new="a"),
        interactions_in_order(u="abcdx", v="b", w="a"),
    )
    data, divided = split_parts(train, valid, test)
    assert parts(data, divided) == {
        "train": {"u": "ab", "v": "cd"},
        "valid": {"u": "c", "v": "a"},
        "test": {"u": "d", "v": "b"},
    }
    assert divided.summary["repeats_left_out"] == 3  # u has a and b in training, c in validation
    assert divided.summary["cold"]["test"] == {"users": 1, "items": 1, "interactions": 2}
    assert divided.summary["cold"]["valid"] == {"users": 1, "items": 0, "interactions": 1}


def test_without_a_validation_file_the_last_training_items_validate() -> None:
    data, divided = split_parts(
        interactions_in_order(u="abc", v="cab", w="b"), None, interactions_in_order(w="a", u="d", v="b")
    )
    found = parts(data, divided)
    assert found["train"] == {"u": "ab", "v": "ca", "w": "b"}
    assert found["valid"] == {"u": "c", "v": "b"}
    assert found["test"] == {"w": "a"}
    assert divided.summary["valid"].startswith("the last training item")


def test_files_of_integers_and_of_text_go_together() -> None:
    numbers = Interactions.from_frame(pl.DataFrame({"user": [1, 1, 2], "item": [5, 6, 6]}))
    text = Interactions.from_frame(pl.DataFrame({"user": ["2", "1"], "item": ["5", "new"]}))
    data, divided = split_parts(numbers, None, text)
    assert parts(data, divided)["test"] == {"2": "5"}


def test_histories_hold_the_training_and_then_the_validation_items() -> None:
    data, divided = split(with_every_item(u="fedcba", v="abcdefgh"), "ratio:50/25/25")
    for test, expected in ((True, ["fedcb", "abcdef"]), (False, ["fedc", "abcd"])):
        items, offsets = divided.histories(test)
        runs = [items[offsets[user] : offsets[user + 1]].tolist() for user in range(2)]
        assert ["".join(str(data.item_ids.id(row)) for row in run) for run in runs] == expected


def test_figures_of_several_items_by_hand() -> None:
    # User 0 has items ranked 0 and 3 among rivals, so at places 0 and 4 of its list; user 1 one at place 2.
    ranks, owners = torch.tensor([3, 0, 2]), torch.tensor([0, 0, 1])
    found = rank_figures(ranks, k=4, owners=owners)
    best = 1 + 1 / math.log2(3)
    assert found["hr@4"] == 1.0
    assert found["recall@4"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["ndcg@4"] == pytest.approx((1 / best + 1 / math.log2(4)) / 2)
    found = rank_figures(ranks, k=5, owners=owners)
    assert found["recall@5"] == 1.0
    assert found["ndcg@5"] == pytest.approx(((1 + 1 / math.log2(6)) / best + 0.5) / 2)
    assert RankMetric("mrr", 4).figure(ranks, owners) == pytest.approx((1 + 1 / 3) / 2)  # of the first of them
    # A perfect list of more items than k has NDCG 1 and recalls k of them.
    perfect = rank_figures(torch.zeros(20, dtype=torch.int64), k=10, owners=torch.zeros(20, dtype=torch.int64))
    assert perfect == {"hr@10": 1.0, "ndcg@10": 1.0, "recall@10": 0.5}


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_one_item_per_user_has_the_figures_of_leave_one_out(ranks: list[int]) -> None:
    held = torch.tensor(ranks)
    several_items = rank_figures(held, owners=torch.arange(len(ranks)).flip(0))
    alone = rank_figures(held)
    assert several_items["hr@10"] == several_items["recall@10"] == alone["hr@10"]
    assert several_items["ndcg@10"] == pytest.approx(alone["ndcg@10"], abs=1e-12)


def test_head_and_tail_are_evaluated_separately() -> None:
    counts = torch.tensor([9, 1, 1, 1, 1, 1, 1, 1, 1, 1])  # item 0 is the head
    ranks, items, owners = torch.tensor([0, 9]), torch.tensor([0, 4]), torch.tensor([0, 0])
    found = head_and_tail_figures(ranks, items, counts, owners=owners)
    assert (found["head_hr@10"], found["tail_hr@10"]) == (1.0, 1.0)  # at place 9 of a list without the head item


def test_ranks_of_several_items_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 12, generator=generator).round(decimals=1)
    part = HeldOut(torch.tensor([0, 2]), torch.tensor([1, 4, 7, 2]), torch.tensor([0, 3, 4]))
    seen, offsets = torch.tensor([0, 2, 9, 5, 6]), torch.tensor([0, 3, 3, 5])
    ranks = catalogue_ranks(
        lambda users: scores[users].clone(), part.users, part.items, seen, offsets, 12, offsets=part.offsets
    )
    negatives = torch.tensor([[3, 5, 6, 8], [0, 1, 3, 4]])
    sampled = sampled_ranks(
        lambda users, items: scores[users[:, None], items], part.users, part.items, negatives, owners=part.owners
    )
    first, second = (0, 0, {1, 4, 7}, {0, 2, 9}), (2, 1, {2}, {5, 6})
    for at, (item, (user, place, own, had)) in enumerate([(1, first), (4, first), (7, first), (2, second)]):
        rivals = set(range(12)) - own - had
        assert int(ranks[at]) == sum(bool(scores[user, other] >= scores[user, item]) for other in rivals)
        assert int(sampled[at]) == sum(bool(scores[user, j] >= scores[user, item]) for j in negatives[place].tolist())


def test_negatives_are_nowhere_among_the_users_own() -> None:
    letters = "abcdefghijklmnopqrst"
    data, divided = split(with_every_item(u=letters[:10], v=letters[5:17], w=letters[14:]), "ratio:60/20/20")
    task = RankingTask.prepare(data, seed=1, eval_negatives=5, split=divided)
    for part in (task.valid, task.test):
        assert part.users.tolist() == [0, 1, 2]
        for user, row in zip(part.users.tolist(), part.negatives.tolist(), strict=True):
            assert not set(data.items[data.users == user].tolist()) & set(row)


def timed_tiny(folder: Path) -> Path:
    """The tiny data set with times: the items of each user are one day apart."""
    rows = [line.split() for line in write_tiny(folder).read_text().splitlines()]
    place: dict[str, int] = {}
    path = folder / "tiny.csv"
    lines = []
    for user, item in rows:
        place[user] = place.get(user, -1) + 1
        lines.append(f"{user},{item},{978_307_200 + DAY * (place[user] + int(user) % 3)}\n")
    path.write_text("user,item,timestamp\n" + "".join(lines))
    return path


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return timed_tiny(tmp_path_factory.mktemp("timed"))


@pytest.mark.parametrize(("task", "model"), [("ranking", "gmf"), ("sequential", "sasrec"), ("ctr", "wide_deep")])
@pytest.mark.parametrize("rule", ["latest:20%", "ratio:70/15/15"])
def test_a_run_states_its_split(timed: Path, tmp_path: Path, task: str, model: str, rule: str) -> None:
    config = tiny_config(timed, task=task, model=model, split=rule, max_epochs=1, anneal_epochs=0)
    metrics = train_run(config, tmp_path / "out")
    saved = json.loads((tmp_path / "out/metrics.json").read_text())
    assert saved["split"] == json.loads(json.dumps(metrics["split"]))
    assert saved["split"]["rule"] == rule == saved["config"]["split"]
    assert sum(saved["split"]["interactions"].values()) == saved["data_summary"]["interactions"]
    assert ("starts" in saved["split"]) == (rule == "latest:20%")
    if task != "ctr":
        assert 0 <= metrics["quality"]["recall@10"] <= metrics["quality"]["hr@10"]
        assert not math.isnan(metrics["quality"]["full_ndcg@10"])
    with pytest.raises(ValueError, match="holds another run"):
        train_run(replace(config, split="ratio:60/20/20"), tmp_path / "out")


def test_what_validates_and_tests_decides_the_fingerprint(timed: Path) -> None:
    digests = {
        RunData.load(tiny_config(timed, task=task, model=model, split=rule, eval_negatives=5)).fingerprint
        for task, model in (("ranking", "gmf"), ("ctr", "wide_deep"))
        for rule in (None, "ratio:70/15/15", "ratio:60/20/20")
    }
    assert len(digests) == 6
    assert (
        RunData.load(tiny_config(timed)).fingerprint
        == RunData.load(tiny_config(timed, split="leave-one-out")).fingerprint
    )


@pytest.mark.parametrize(("task", "model"), [("ranking", "gmf"), ("ctr", "wide_deep")])
def test_files_on_the_command_line(timed: Path, tmp_path: Path, task: str, model: str) -> None:
    head, *lines = timed.read_text().splitlines(keepends=True)
    for name, part in (("train", lines[::2]), ("valid", lines[1::4]), ("test", lines[3::4])):
        (tmp_path / f"{name}.csv").write_text(head + "".join(part))
    command = ["train", "--train", str(tmp_path / "train.csv"), "--test", str(tmp_path / "test.csv")]
    command += ["--valid", str(tmp_path / "valid.csv"), "--model", model, "--out", str(tmp_path / "out")]
    settings = ["--set", "max_epochs=1", "--set", "anneal_epochs=0", "--set", "eval_negatives=5", "--set", "dim=8"]
    result = CliRunner().invoke(app, [*command, *settings, "--embedding", "full"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out/metrics.json").read_text())["split"]["rule"] == "files"


def test_a_comparison_and_a_study_take_a_split(timed: Path, tmp_path: Path) -> None:
    runner, quick = CliRunner(), {"max_epochs": 1, "anneal_epochs": 0, "eval_negatives": 5, "dim": 8}
    command = ["compare", "--data", str(timed), "--split", "ratio:70/15/15", "--embedding", "full", "--seeds", "1"]
    settings = [text for name, value in quick.items() for text in ("--set", f"{name}={value}")]
    result = runner.invoke(app, [*command, *settings, "--out", str(tmp_path / "compare")])
    assert result.exit_code == 0, result.output
    (run,) = map(json.loads, (tmp_path / "compare/results.jsonl").read_text().splitlines())
    assert run["split"]["rule"] == "ratio:70/15/15"
    listed = ", ".join(f"{name} = {value}" for name, value in quick.items())
    (tmp_path / "study.toml").write_text(
        f'seeds = [1]\n[pairs.gmf]\nmodel = "gmf"\ndata = "{timed}"\nsettings = {{ {listed}, split = "latest:20%" }}\n'
    )
    result = runner.invoke(
        app, ["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "study"), "--jobs", "1"]
    )
    assert result.exit_code == 0, result.output
    (record,) = map(json.loads, (tmp_path / "study/results.jsonl").read_text().splitlines())
    assert record["split"]["rule"] == "latest:20%"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": "v.csv"}, "needs a file for the test"),
        ({"test": "t.csv"}, "goes with a file of your own to train on"),
        ({"data": "mine.csv", "test": "t.csv", "split": "ratio:80/10/10"}, "divides one file"),
        ({"data": "ml-1m-ncf", "split": "ratio:80/10/10"}, "has a published split"),
    ],
)
def test_settings_that_do_not_go_together(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)  # type: ignore[arg-type]


def test_the_page_on_splits_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "splits.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/splits.md", "exec"), {})
        said = [line.partition("# ")[2] for line in block.splitlines() if re.search(r"(^|\) +)# (\{|ann)", line)]
        assert capsys.readouterr().out.splitlines() == said


class Scores(torch.nn.Module):
    """A model like GMF whose scores of pairs and of the catalogue come from a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.table[users[:, None], items]

    def catalogue(self, num_items: int) -> Tensor:
        return torch.eye(num_items)

    def score_catalogue(self, users: Tensor, distinct: Tensor) -> Tensor:
        return self.table[users] @ distinct.T


def by_hand(lists: list[tuple[list[float], list[float]]], k: int = 10) -> dict[str, float]:
    """HR, NDCG and recall from (scores of relevant items, scores of rivals) per user; ties count against the model."""
    hits, gains, recalls = [], [], []
    for relevant, rivals in lists:
        ranked = sorted(
            [(-score, 1) for score in relevant] + [(-score, 0) for score in rivals]
        )  # rivals first in draws
        top = [mark for _, mark in ranked[:k]]
        hits.append(float(any(top)))
        best = sum(1 / math.log2(at + 2) for at in range(min(k, len(relevant))))
        gains.append(sum(mark / math.log2(at + 2) for at, mark in enumerate(top)) / best)
        recalls.append(sum(top) / len(relevant))
    return {
        name: sum(values) / len(values)
        for name, values in (("hr@10", hits), ("ndcg@10", gains), ("recall@10", recalls))
    }


def test_judging_several_items_against_a_list_by_hand() -> None:
    letters = [chr(97 + at) for at in range(26)]
    generator = torch.Generator().manual_seed(2)
    users = {
        f"u{at}": "".join(letters[j] for j in torch.randperm(26, generator=generator)[: 4 + 2 * at].tolist())
        for at in range(8)
    }
    data, divided = split(with_every_item(**users), "ratio:40/30/30")
    table = torch.randint(0, 12, (data.num_users, data.num_items), generator=generator).float()
    task = RankingTask.prepare(data, seed=1, eval_negatives=6, split=divided)
    figures = task.evaluate(Scores(table))
    own = {int(user): set(data.items[data.users == user].tolist()) for user in range(data.num_users)}
    train = [
        set(divided.train_items[divided.train_offsets[u] : divided.train_offsets[u + 1]].tolist())
        for u in range(data.num_users)
    ]
    held = {
        name: {int(u): part.items[part.offsets[at] : part.offsets[at + 1]].tolist() for at, u in enumerate(part.users)}
        for name, part in (("valid", divided.valid), ("test", divided.test))
    }
    for name, part, prefix in (("test", task.test, ""), ("valid", task.valid, "valid_")):
        sampled, whole = [], []
        for at, user in enumerate(part.users.tolist()):
            relevant = [float(table[user, item]) for item in held[name][user]]
            assert not own[user] & set(part.negatives[at].tolist())
            sampled.append((relevant, [float(table[user, item]) for item in part.negatives[at].tolist()]))
            before = train[user] | (set(held["valid"][user]) if name == "test" else set())
            rivals = set(range(data.num_items)) - before - set(held[name][user])
            whole.append((relevant, [float(table[user, item]) for item in rivals]))
        assert len(sampled) == 8
        for lists, middle in ((sampled, ""), (whole, "full_")):
            for figure, value in by_hand(lists).items():
                assert figures[f"{prefix}{middle}{figure}"] == pytest.approx(value, abs=1e-12), (name, middle, figure)


def test_sequential_queries_come_after_all_that_was_before() -> None:
    from mgqe.recsys.tasks.sequential import SequentialTask

    data, divided = split(with_every_item(u="abcdefghij", v="jihgf", w="acegi", two="kl"), "ratio:40/30/30")
    task = SequentialTask(RankingTask.prepare(data, seed=1, eval_negatives=2, split=divided), max_length=4)
    asked: list[list[int]] = []

    def model(items: Tensor, sizes: Tensor) -> Tensor:
        asked.extend(part.tolist() for part in torch.split(items, sizes.tolist()))
        return torch.zeros(len(sizes), 1)

    def letters(rows: list[list[int]]) -> set[str]:
        return {"".join(str(data.item_ids.id(row)) for row in run) for run in rows}

    task.queries(model, test=False)  # type: ignore[arg-type]
    assert letters(asked) == {"abcd", "jih", "ace"}
    asked.clear()
    task.queries(model, test=True)  # type: ignore[arg-type]
    assert letters(asked) == {"defg", "jihg", "aceg"}


def test_rows_with_context_by_hand() -> None:
    frame = pl.DataFrame(
        [
            ("u", "a", "x", 0), ("u", "b", "x", 1), ("v", "a", "y", 0), ("v", "b", "x", 5), ("u", "b", "y", 6),
            ("u", "a", "z", 7), ("new", "a", "x", 7), ("v", "a", "x", 8), ("v", "c", "x", 8),
        ],
        schema=["user", "item", "city", "time"],
        orient="row",
    )  # fmt: skip
    divided = split_by_rule(ContextRows.from_frame(frame), "time:5/7", seed=0)
    rows = divided.rows
    named = [
        "".join(str(rows.ids[name].id(int(column[at]))) for name, column in rows.columns.items())
        for at in range(len(rows))
    ]
    found = [sorted(named[at] for at in part.tolist()) for part in (divided.parts.train, divided.parts.valid)]
    assert found == [["uxa", "uxb", "vya"], ["uyb", "vxb"]]
    assert [named[at] for at in divided.parts.test.tolist()] == ["vxa"]
    assert divided.summary["cold"]["test"] == {"users": 1, "city": 1, "items": 1, "interactions": 3}
    assert len(rows.ids["city"]) == 2


def test_rows_without_time_by_ratio() -> None:
    users = ["u"] * 10 + [f"v{at}" for at in range(10)]
    frame = pl.DataFrame({"user": users, "item": [*"abcdefghij"] * 2, "city": ["x"] * 20})
    rows = ContextRows.from_frame(frame)
    first, again = (split_by_rule(rows, "ratio:60/20/20", seed=1) for _ in range(2))
    assert torch.equal(first.parts.train, again.parts.train)
    assert first.summary["order"].startswith("each user's rows in random order")
    assert first.summary["interactions"] == {"train": 16, "valid": 2, "test": 2}
    items = [rows.items[part] for part in (first.parts.valid, first.parts.test)]
    assert torch.cat(items).unique().numel() == 4  # of u, in an order that the seed decides
    assert torch.cat(items).tolist() != [6, 7, 8, 9]
    for rule, message in (("leave-one-out", "needs an order of time"), ("time:20%", "--time-column")):
        with pytest.raises(ValueError, match=message):
            split_by_rule(rows, rule, 0)


def test_a_core_is_what_stays_when_all_are_counted_anew() -> None:
    # Item d has one user. Without it user y has one item; without y, item c has one user, and then x has two.
    data = interactions_in_order(x="abc", y="cd", z="ab")
    dense = core(data, 2)
    assert [dense.user_ids.id(row) for row in range(dense.num_users)] == ["x", "z"]
    assert [dense.item_ids.id(row) for row in range(dense.num_items)] == ["a", "b"]
    assert dense.users.tolist() == [0, 0, 1, 1]
    assert dense.items.tolist() == [0, 1, 0, 1]
    assert core(data, 1).users.tolist() == data.users.tolist()
    with pytest.raises(ValueError, match=r"--k-core 3: .* but none of the 7 interactions is left"):
        core(data, 3)


def test_a_minimum_count_is_of_items_and_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [(user, item, item) for user in range(6) for item in range(6) if item != user]
    rows += [(0, 7, 7), (1, 7, 8), (9, 8, 9)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(path)
    task = RunData.load(tiny_config(path, min_count=3, eval_negatives=1)).task
    assert task.split_summary["left_out_by_min_count"] == {"users": 1, "items": 2, "interactions": 3}
    assert "left_out_by_k_core" not in task.split_summary
    with pytest.raises(ValueError, match="--min-count 9: no item has more than 3 interactions"):
        frequent(interactions_in_order(x="ab", y="a", z="a"), 9)
    with pytest.raises(ValueError, match="--min-count 3 is for data that are divided here"):
        TrainConfig(data="beauty-split", min_count=3)


def test_what_a_core_leaves_out_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [(user, item) for user in range(6) for item in range(6) if item != user] + [(7, 1), (7, 2), (8, 9)]
    pl.DataFrame(rows, schema=["user", "item"], orient="row").write_csv(path)
    task = RunData.load(tiny_config(path, k_core=3, eval_negatives=1)).task
    assert task.split_summary["left_out_by_k_core"] == {"users": 2, "items": 1, "interactions": 3}
    assert (task.split.num_users, task.split.num_items) == (6, 6)
    for changes, message in (
        ({"task": "ctr", "model": "deepfm"}, "--k-core 3 is for models that rank"),
        ({"data": "beauty-split"}, "--k-core 3 is for data that are divided here"),
        ({"data": "planted", "k_core": 0}, "k_core must be a whole number of 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**{"k_core": 3, **changes})
