"""How a data set is divided into a training, a validation and a test part.

=====================  ==================================================================================
`leave-one-out`        the last item of each user is for the test, the one before it for validation
`random`               a random item of each user is for the test, another one for validation
`ratio:80/10/10`       of each user's items in order, the first 80% are for training, the last 10% for the test
`time:20%`             the last 20% of the time between the first interaction and the last are for the test
`time:2015-06-01`      interactions from this moment on are for the test; a number if times are numbers
`latest:20%`           the latest 20% of all interactions are for the test
=====================  ==================================================================================

`time` and `latest` also take two values, the start of validation and the start of the test: `time:10%/20%` validates
on the 10% before the last 20%, `time:2015-05-01/2015-06-01` on May. With one value, validation gets the latest 10%
of the interactions before the test. Interactions of the same moment stay in one part. All training interactions come
before all validation interactions, and these before all test interactions.

Where repeats are kept, as in sessions, each part judges the last of a user's interactions in it, which is ranked from
all that the user had before. `time` and `latest` then put whole sessions into a part, by their last interaction.

Where nothing says in which order a user took the items, `ratio` takes them in random order. Random is what SEED says,
whatever the run's seed is, so that all runs on a file have one split.

With `leave-one-out`, `random` and `ratio`, all interactions of a user who has fewer than 3 are for training. With all
rules but `leave-one-out` and `random`, validation and test interactions of users or items without a training
interaction are left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from fractions import Fraction

import polars as pl
import torch
from torch import Tensor

from mgqe.checks.names import did_you_mean
from mgqe.recsys.data.held_out import (
    TEST,
    TRAIN,
    VALID,
    Split,
    count_cold,
    judge_last,
    part_sizes,
    require_parts,
    split_by_labels,
    trained_columns,
    without_cold,
)
from mgqe.recsys.data.interactions import Interactions

LEAVE_ONE_OUT = "leave-one-out"
RANDOM = "random"
ONE_EACH = (LEAVE_ONE_OUT, RANDOM)  # rules that hold out one item of each user
KINDS = (*ONE_EACH, "ratio", "time", "latest")
SEED = 0
EXPECTED = (
    "expected leave-one-out, random, ratio:80/10/10, time:20%, time:2015-06-01, time:10%/20% (validation/test) or "
    "latest:20%"
)
DEFAULT_VALID = Fraction(1, 10)  # of the interactions before the test
LEFT_OUT = "left out: validation and test interactions whose user or item no training interaction has"
JUDGED = "judged all the same, on vectors that no training interaction has changed"
_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6))  # times below the first number have so many units per second


@dataclass(frozen=True)
class SplitRule:
    """A parsed rule.

    values: three shares for `ratio`; otherwise the start of the test, which the start of validation may precede. A
    Fraction is a share, a float a moment in the unit of the times, a datetime a moment to be converted to that unit.
    """

    text: str
    kind: str
    values: tuple[Fraction | float | datetime, ...] = ()

    @classmethod
    def parse(cls, text: str) -> SplitRule:
        """ValueError says what is wrong with `text` and what could be meant."""
        kind, colon, rest = text.strip().partition(":")
        if kind not in KINDS or (kind in ONE_EACH) == bool(colon):
            hint = "" if kind in KINDS else did_you_mean(kind, KINDS)
            raise ValueError(f"--split {text}: no such rule{hint}: {EXPECTED}")
        if kind in ONE_EACH:
            return cls(kind, kind)
        parts = [part.strip() for part in rest.split("/")]
        values = _ratio(text, parts) if kind == "ratio" else _boundaries(text, kind, parts)
        return cls(text.strip(), kind, values)


def _ratio(text: str, parts: list[str]) -> tuple[Fraction, ...]:
    try:
        values = [Fraction(part.removesuffix("%").strip()) for part in parts]
    except (ValueError, ZeroDivisionError):
        values = []
    if len(values) != 3 or min(values) <= 0 or sum(values) not in (1, 100):
        raise ValueError(
            f"--split {text}: expected three shares above 0 that sum to 100, as in ratio:80/10/10 (to train, to "
            "validate, to test)"
        )
    return tuple(value / sum(values) for value in values)


def _boundaries(text: str, kind: str, parts: list[str]) -> tuple[Fraction | float | datetime, ...]:
    if len(parts) > 2:
        raise ValueError(f"--split {text}: expected one value, for the test, or two, for validation and test")
    values = tuple(_boundary(text, part) for part in parts)
    shares = [value for value in values if isinstance(value, Fraction)]
    if kind == "latest" and len(shares) < len(values):
        raise ValueError(f"--split {text}: expected shares such as latest:20%; for a date or a number: time:2015-06-01")
    if sum(shares) >= 1:
        raise ValueError(f"--split {text}: expected shares that leave something to train on")
    return values


def _boundary(text: str, part: str) -> Fraction | float | datetime:
    try:
        if part.endswith("%"):
            share = Fraction(part.removesuffix("%").strip()) / 100
            if not 0 < share < 1:
                raise ValueError(f"--split {text}: expected a share above 0% and below 100%, got {part}")
            return share
        moment = _moment(part)
    except (ValueError, ZeroDivisionError) as error:
        if str(error).startswith("--split"):
            raise
        raise ValueError(f"--split {text}: {part!r} is no share, date or number: {EXPECTED}") from None
    if isinstance(moment, float) and 0 < moment < 1:
        raise ValueError(f"--split {text}: write a share with a per cent sign: {100 * moment:g}%")
    return moment


def _moment(part: str) -> float | datetime:
    try:
        number = float(part)
    except ValueError:
        # Python 3.10 does not know Z.
        moment = datetime.fromisoformat(part[:-1] + "+00:00" if part.endswith("Z") else part)
        return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    if number - number != 0:
        raise ValueError("not finite")
    return number


@dataclass(frozen=True)
class Labels:
    """labels: int64 (n,), TRAIN, VALID or TEST. starts: part -> its first moment, for the rules `time` and `latest`."""

    labels: Tensor
    starts: dict[str, float]


def label(rule: SplitRule, users: Tensor, times: Tensor | None, generator: torch.Generator | None = None) -> Labels:
    """The part of each interaction; users int64 (n,), each user's in order; times float64 (n,) or None.

    generator: draws an order of each user's interactions, if the data have none.
    ValueError if a part would be empty, or if the rule needs times and there are none.
    """
    if rule.kind in ("time", "latest"):
        return _by_time(rule, times)
    labels = _by_user(rule, users, generator)
    most = int(torch.bincount(users).max()) if users.numel() else 0
    if most < 3:
        raise ValueError(f"no user has 3 interactions: {rule.kind} needs one each to train, validate and test")
    return Labels(labels, {})


def _by_user(rule: SplitRule, users: Tensor, generator: torch.Generator | None) -> Tensor:
    """Users with 3 interactions or more get at least one in each part; those of other users are for training."""
    num = users.numel()
    order = torch.arange(num) if generator is None else torch.randperm(num, generator=generator)
    order = order[users[order].argsort(stable=True)]
    counts = torch.bincount(users)
    before_end = torch.empty(num, dtype=torch.int64)  # 1 for a user's last interaction
    before_end[order] = counts.cumsum(0)[users[order]] - torch.arange(num)
    tests, valids = torch.ones_like(counts), torch.ones_like(counts)
    if rule.kind == "ratio":
        _, valid, test = (value for value in rule.values if isinstance(value, Fraction))
        # Rounded down, but every part gets at least one.
        valids = torch.minimum((counts * valid.numerator // valid.denominator).clamp(min=1), counts - 2)
        tests = torch.minimum((counts * test.numerator // test.denominator).clamp(min=1), counts - 1 - valids)
    few = counts < 3
    tests, valids = tests.masked_fill(few, 0)[users], valids.masked_fill(few, 0)[users]
    labels = torch.full((num,), TRAIN)
    labels[before_end <= tests + valids] = VALID
    labels[before_end <= tests] = TEST
    return labels


def _by_time(rule: SplitRule, times: Tensor | None) -> Labels:
    if times is None:
        raise ValueError(
            f"--split {rule.text} needs to know when each interaction was, which this data set does not say: if its "
            "file has a column of times, name it with --time-column, or use --split ratio:80/10/10, or leave --split "
            "out"
        )
    test = _start(rule, rule.values[-1], times, float(times.max()))
    before = times[times < test]
    if before.numel() == 0:
        raise ValueError(f"--split {rule.text} leaves nothing before the test: {_range(times)}")
    if len(rule.values) == 2:
        valid = _start(rule, rule.values[0], before if rule.kind == "latest" else times, test, len(times))
    else:
        valid = _latest(before, DEFAULT_VALID * len(before))
    if valid >= test:
        raise ValueError(f"--split {rule.text}: expected validation to start before the test; {_range(times)}")
    labels = (times >= valid).long() + (times >= test).long()
    require_parts(labels, rule.text, _range(times))
    return Labels(labels, {"valid": valid, "test": test})


def _start(
    rule: SplitRule, value: Fraction | float | datetime, times: Tensor, end: float, total: int | None = None
) -> float:
    """The first moment of the part that ends at `end`; times (n,) end there or later."""
    if isinstance(value, datetime):
        return value.timestamp() * _per_second(times)
    if isinstance(value, float):
        return value
    if rule.kind == "latest":
        return _latest(times, value * (total or len(times)))
    first, last = Fraction(float(times.min())), Fraction(float(times.max()))
    return float(Fraction(end) - value * (last - first))


def _latest(times: Tensor, number: Fraction) -> float:
    """The moment from which on there are `number` of `times`, rounded down, at least one; more if times are equal."""
    return float(times.sort().values[-min(len(times), max(1, int(number)))])


def _per_second(times: Tensor) -> int:
    """The units per second of `times`, guessed by their size: seconds, milli-, micro- or nanoseconds."""
    largest = float(times.abs().max())
    return next((units for below, units in _UNITS if largest < below), 10**9)


def _range(times: Tensor) -> str:
    return f"times run from {_shown(times, float(times.min()))} to {_shown(times, float(times.max()))}"


def _shown(times: Tensor, value: float) -> str:
    """A moment as the file has it, and as a date if it is one."""
    date = utc(times, value)
    return f"{value:.17g}" if date is None else f"{value:.17g} ({date})"


def utc(times: Tensor, value: float) -> str | None:
    """A moment in the unit of `times` as a date; None if the numbers are too small to be times since 1970."""
    seconds = value / _per_second(times)
    if not 1e8 <= seconds < 2e10:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(sep=" ").removesuffix("+00:00")


def leave_one_out(interactions: Interactions) -> Split:
    """Split by the order of each user's interactions; ValueError if no user has 3 interactions."""
    return split(interactions, LEAVE_ONE_OUT)[1]


def split(interactions: Interactions, rule: str | SplitRule = LEAVE_ONE_OUT) -> tuple[Interactions, Split]:
    """Split by a rule of this module; returns the interactions that are left, and their parts.

    With all rules but leave-one-out and random, users and items without a training interaction are left out and rows
    get new numbers. ValueError says why a rule does not fit the data.
    """
    rule = SplitRule.parse(rule) if isinstance(rule, str) else rule
    at_random = rule.kind == RANDOM or (rule.kind == "ratio" and not interactions.ordered)
    generator = torch.Generator().manual_seed(SEED) if at_random else None
    parts = _label_sessions(rule, interactions) or label(rule, interactions.users, interactions.times, generator)
    summary: dict[str, object] = {"rule": rule.text, "order": order_of(interactions, at_random)}
    summary |= starts_summary(interactions.times, parts.starts)
    return _build_split(interactions, parts.labels, summary, rule.kind not in ONE_EACH)


def order_of(interactions: Interactions, at_random: bool) -> str:
    """In which order a user's interactions were divided, for the results."""
    no_times = "" if interactions.times is not None else "; no column of times"
    if at_random:
        return f"random, seed {SEED}{no_times}"
    return "by time" if interactions.times is not None else f"the file's{no_times}"


def _label_sessions(rule: SplitRule, interactions: Interactions) -> Labels | None:
    """The part of each interaction, which is that of its session's last one; None unless the rule divides by time."""
    if interactions.owner != "session" or not interactions.keeps_repeats or rule.kind not in ("time", "latest"):
        return None
    ends = None if interactions.times is None else interactions.times[interactions.offsets[1:] - 1]
    parts = label(rule, torch.arange(interactions.num_users), ends)
    return Labels(parts.labels[interactions.users], parts.starts)


def starts_summary(times: Tensor | None, starts: dict[str, float]) -> dict[str, object]:
    """The moments at which parts start, for the results."""
    if times is None or not starts:
        return {}
    dates = {part: utc(times, value) for part, value in starts.items()}
    return {"starts": starts, **({"starts_utc": dates} if all(dates.values()) else {})}


def split_parts(train: Interactions, valid: Interactions | None, test: Interactions) -> tuple[Interactions, Split]:
    """Split into the parts that are passed; an interaction in several parts stays only in the first of them.

    Where repeats are kept, all of them stay, and a session that is in several files goes on from one to the next.
    Without `valid`, the last training item of each user with two or more is for validation, or a random one where
    `train` is not in order. Users and items without a
    training interaction are left out and rows get new numbers.
    """
    parts = _merge_parts(train, valid, test)
    assert parts.times is not None  # these are the labels, by which each user's interactions are sorted
    labels = parts.times.long()
    summary = {
        "rule": "files",
        "repeats_left_out": sum(len(part) for part in (train, valid, test) if part is not None) - len(parts),
    }
    if valid is None:
        which = "the last" if train.ordered else f"a random (seed {SEED})"
        summary["valid"] = f"{which} training item of each {train.owner} with two or more"
        labels = hold_out_last(parts.users, labels, None if train.ordered else torch.Generator().manual_seed(SEED))
    require_parts(labels, "files", "each of the files must have interactions that no earlier one has")
    return _build_split(replace(parts, times=None), labels, summary, True)


def published_parts(train: Interactions, valid: Interactions, test: Interactions) -> tuple[Interactions, Split]:
    """Like `split_parts`, but nothing is left out: whoever published the parts judged cold users and items, too."""
    parts = _merge_parts(train, valid, test)
    assert parts.times is not None  # the labels, as in split_parts
    labels, total = parts.times.long(), len(train) + len(valid) + len(test)
    summary: dict[str, object] = {"rule": "as published", "repeats_left_out": total - len(parts)}
    require_parts(labels, "files", "each of the files must have interactions that no earlier one has")
    interactions, split = _build_split(replace(parts, times=None), labels, summary, False)
    return interactions, replace(split, several_items=True)


def hold_out_last(users: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Labels (n,) in which the last TRAIN interaction of each user with two or more is VALID; users (n,) ascending.

    generator: takes a random one instead of the last.
    """
    positions = (labels == TRAIN).nonzero().squeeze(1)
    if generator is not None:
        positions = positions[torch.randperm(positions.numel(), generator=generator)]
        positions = positions[users[positions].argsort(stable=True)]
    _, counts = torch.unique_consecutive(users[positions], return_counts=True)
    labels = labels.clone()
    labels[positions[counts.cumsum(0) - 1][counts >= 2]] = VALID
    return labels


def _merge_parts(train: Interactions, valid: Interactions | None, test: Interactions) -> Interactions:
    """All interactions of the parts, each in the first part that has it; `times` holds the part's label."""
    parts = ((TRAIN, train), (VALID, valid), (TEST, test))
    frames = [_frame(part, label, train.owner) for label, part in parts if part is not None]
    return Interactions.from_frame(concat_parts(frames), train.keeps_repeats)


def concat_parts(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """The frames below one another; ids are text if they are integers in some frames alone."""
    for name in frames[0].columns:
        if len({frame[name].dtype for frame in frames}) > 1:
            frames = [frame.with_columns(pl.col(name).cast(pl.String)) for frame in frames]
    return pl.concat(frames)


def _frame(part: Interactions, label: int, owner: str) -> pl.DataFrame:
    users, items = (
        ids.ids.gather(rows.numpy()).alias(name)
        for name, ids, rows in ((owner, part.user_ids, part.users), ("item", part.item_ids, part.items))
    )
    return pl.DataFrame([users, items]).with_columns(pl.lit(label, pl.Int64).alias("time"))


def _build_split(
    interactions: Interactions, labels: Tensor, summary: dict[str, object], drop_cold: bool
) -> tuple[Interactions, Split]:
    """The split; its summary has sizes of the parts, numbers of cold ids, and that of users too short to be judged."""
    columns = trained_columns(interactions)
    summary = {**summary, "cold": count_cold(tuple(columns), tuple(columns.values()), labels)}
    summary["cold_rule"] = LEFT_OUT if drop_cold else JUDGED
    if drop_cold:
        interactions, labels = without_cold(interactions, labels)
        require_parts(labels, str(summary["rule"]), "all others are of users or items without a training interaction")
    if interactions.keeps_repeats:
        labels = judge_last(interactions.users, labels)
        require_parts(labels, str(summary["rule"]), f"no {interactions.owner} there has an item before the last one")
        summary["only_read"] = int((labels > TEST).sum())
    parts = split_by_labels(interactions, labels, several_items=drop_cold)
    users = {"valid": parts.valid.users.numel(), "test": parts.test.users.numel()}
    summary["too_short"] = int((interactions.offsets.diff() < _least(str(summary["rule"]), interactions)).sum())
    summary |= {"interactions": part_sizes(labels), f"{interactions.owner}s_with_items": users}
    return interactions, replace(parts, summary=summary)


def _least(rule: str, interactions: Interactions) -> int:
    """How many interactions a user must have to be judged; 0 where the rule does not say."""
    if rule.partition(":")[0] in (*ONE_EACH, "ratio"):
        return 3
    return 2 if interactions.keeps_repeats else 0
