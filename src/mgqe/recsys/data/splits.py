"""How a data set is divided into a training, a validation and a test part.

=====================  ==================================================================================
`leave-one-out`        a user's last item is for the test, the one before it for validation
`ratio:80/10/10`       of each user's items in order, the first 80% to train on, the last 10% for the test
`time:20%`             the last 20% of the time between the first interaction and the last are for the test
`time:2015-06-01`      what happened from that moment on is for the test; a number where times are numbers
`latest:20%`           the latest 20% of all interactions are for the test
=====================  ==================================================================================

`time` and `latest` take two values as well, the start of validation before that of the test: `time:10%/20%` validates
on the 10% before the last 20%, `time:2015-05-01/2015-06-01` on May. With one value, validation gets the latest 10%
of the interactions before the test. Interactions of one moment are never divided, and every validation interaction is
before every test interaction, every training interaction before every validation interaction.

A user with fewer than 3 interactions is only trained on by `leave-one-out` and `ratio`. By all rules but
`leave-one-out`, validation and test interactions of users or items without a training interaction are left out, and
counted.
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
    part_sizes,
    require_parts,
    split_by_labels,
    without_cold,
)
from mgqe.recsys.data.interactions import Interactions

LEAVE_ONE_OUT = "leave-one-out"
KINDS = (LEAVE_ONE_OUT, "ratio", "time", "latest")
EXPECTED = (
    "expected leave-one-out, ratio:80/10/10, time:20%, time:2015-06-01, time:10%/20% (validation/test) or latest:20%"
)
DEFAULT_VALID = Fraction(1, 10)  # of the interactions before the test
LEFT_OUT = "left out: validation and test interactions whose user or item no training interaction has"
JUDGED = "judged all the same, on vectors that no training interaction has changed"
_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6))  # times below the first number have so many units per second


@dataclass(frozen=True)
class SplitRule:
    """A parsed rule. values: of `ratio` three shares; else where the test starts, and before it where validation does.

    A Fraction is a share, a float a moment as the times have it, and a datetime one to be put into their unit.
    """

    text: str
    kind: str
    values: tuple[Fraction | float | datetime, ...] = ()

    @classmethod
    def parse(cls, text: str) -> SplitRule:
        """ValueError says what is wrong with `text` and what could be meant."""
        kind, colon, rest = text.strip().partition(":")
        if kind not in KINDS or (kind == LEAVE_ONE_OUT) == bool(colon):
            hint = "" if kind in KINDS else did_you_mean(kind, KINDS)
            raise ValueError(f"--split {text}: no such rule{hint}: {EXPECTED}")
        if kind == LEAVE_ONE_OUT:
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
    """labels: int64 (n,), TRAIN, VALID or TEST. starts: part -> its first moment, by the rules of time."""

    labels: Tensor
    starts: dict[str, float]


def label(rule: SplitRule, users: Tensor, times: Tensor | None, generator: torch.Generator | None = None) -> Labels:
    """The part of each interaction; users int64 (n,), each user's in order; times float64 (n,) or None.

    generator: draws the order in which a user's interactions are divided, where they have none.
    ValueError when a part would be empty, or the rule needs times that there are not.
    """
    if rule.kind in ("time", "latest"):
        return _by_time(rule, times)
    labels = _by_user(rule, users, generator)
    most = int(torch.bincount(users).max()) if users.numel() else 0
    if most < 3:
        raise ValueError(f"no user has 3 interactions: {rule.kind} needs one each to train, validate and test")
    return Labels(labels, {})


def _by_user(rule: SplitRule, users: Tensor, generator: torch.Generator | None) -> Tensor:
    """Users with 3 interactions or more have one at least in each part; those with fewer are only trained on."""
    num = users.numel()
    order = torch.arange(num) if generator is None else torch.randperm(num, generator=generator)
    order = order[users[order].argsort(stable=True)]
    counts = torch.bincount(users)
    before_end = torch.empty(num, dtype=torch.int64)  # 1 for a user's last interaction
    before_end[order] = counts.cumsum(0)[users[order]] - torch.arange(num)
    tests, valids = torch.ones_like(counts), torch.ones_like(counts)
    if rule.kind == "ratio":
        _, valid, test = (value for value in rule.values if isinstance(value, Fraction))
        # Rounded down, but each part gets one at least, the training part too.
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
    """The moment from which on interactions belong to the part that ends at `end`; times (n,) end there or later."""
    if isinstance(value, datetime):
        return value.timestamp() * _per_second(times)
    if isinstance(value, float):
        return value
    if rule.kind == "latest":
        return _latest(times, value * (total or len(times)))
    first, last = Fraction(float(times.min())), Fraction(float(times.max()))
    return float(Fraction(end) - value * (last - first))


def _latest(times: Tensor, number: Fraction) -> float:
    """The moment from which on there are `number` of `times`, rounded down, one at least; more where moments agree."""
    return float(times.sort().values[-min(len(times), max(1, int(number)))])


def _per_second(times: Tensor) -> int:
    """How many units of `times` are a second, by their size: seconds, milliseconds, microseconds or nanoseconds."""
    largest = float(times.abs().max())
    return next((units for below, units in _UNITS if largest < below), 10**9)


def _range(times: Tensor) -> str:
    return f"times run from {_shown(times, float(times.min()))} to {_shown(times, float(times.max()))}"


def _shown(times: Tensor, value: float) -> str:
    """A moment as the file has it, and as a date where it is one."""
    date = utc(times, value)
    return f"{value:.17g}" if date is None else f"{value:.17g} ({date})"


def utc(times: Tensor, value: float) -> str | None:
    """A moment in the unit of `times` as a date; None where the numbers are too small to be dates since 1970."""
    seconds = value / _per_second(times)
    if not 1e8 <= seconds < 2e10:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(sep=" ").removesuffix("+00:00")


def leave_one_out(interactions: Interactions) -> Split:
    """Split by each user's own order; ValueError when no user has 3 interactions."""
    return split(interactions, LEAVE_ONE_OUT)[1]


def split(interactions: Interactions, rule: str | SplitRule = LEAVE_ONE_OUT) -> tuple[Interactions, Split]:
    """Divide by a rule of this module's; the interactions that are left, and their parts.

    By all rules but leave-one-out, users and items without a training interaction are left out and rows are numbered
    anew. ValueError says why a rule does not fit the data.
    """
    rule = SplitRule.parse(rule) if isinstance(rule, str) else rule
    labelled = label(rule, interactions.users, interactions.times)
    summary = {"rule": rule.text, **starts_summary(interactions.times, labelled.starts)}
    return _divided(interactions, labelled.labels, summary, rule.kind != LEAVE_ONE_OUT)


def starts_summary(times: Tensor | None, starts: dict[str, float]) -> dict[str, object]:
    """The moments at which parts start, for the results."""
    if times is None or not starts:
        return {}
    dates = {part: utc(times, value) for part, value in starts.items()}
    return {"starts": starts, **({"starts_utc": dates} if all(dates.values()) else {})}


def split_parts(train: Interactions, valid: Interactions | None, test: Interactions) -> tuple[Interactions, Split]:
    """Divide as given: interactions of a part that an earlier part has too are left out of the later one.

    Without `valid`, the last training item of each user with two or more is for validation. Users and items without a
    training interaction are left out and rows are numbered anew.
    """
    parts = merge_parts(train, valid, test)
    assert parts.times is not None  # the labels, which keep each user's parts in order
    labels = parts.times.long()
    summary = {
        "rule": "files",
        "repeats_left_out": sum(len(part) for part in (train, valid, test) if part is not None) - len(parts),
    }
    if valid is None:
        summary["valid"] = "the last training item of each user with two or more"
        labels = hold_out_last(parts.users, labels)
    require_parts(labels, "files", "each of the files must have interactions that no earlier one has")
    return _divided(replace(parts, times=None), labels, summary, True)


def hold_out_last(users: Tensor, labels: Tensor) -> Tensor:
    """Labels (n,) with each user's last TRAIN interaction as VALID, of users with two or more; users (n,) ascending."""
    places = (labels == TRAIN).nonzero().squeeze(1)
    _, counts = torch.unique_consecutive(users[places], return_counts=True)
    labels = labels.clone()
    labels[places[counts.cumsum(0) - 1][counts >= 2]] = VALID
    return labels


def merge_parts(train: Interactions, valid: Interactions | None, test: Interactions) -> Interactions:
    """All interactions of the parts, each once, in the first part that has it; `times` holds the part's label."""
    given = ((TRAIN, train), (VALID, valid), (TEST, test))
    frames = [_frame(part, number) for number, part in given if part is not None]
    for name in ("user", "item"):
        if len({frame[name].dtype for frame in frames}) > 1:  # the ids of one file alone are all integers
            frames = [frame.with_columns(pl.col(name).cast(pl.String)) for frame in frames]
    return Interactions.from_frame(pl.concat(frames))


def _frame(part: Interactions, number: int) -> pl.DataFrame:
    users, items = (
        ids.ids.gather(rows.numpy()).alias(name)
        for name, ids, rows in (("user", part.user_ids, part.users), ("item", part.item_ids, part.items))
    )
    return pl.DataFrame([users, items]).with_columns(pl.lit(number, pl.Int64).alias("time"))


def _divided(
    interactions: Interactions, labels: Tensor, summary: dict[str, object], drop_cold: bool
) -> tuple[Interactions, Split]:
    """The split, with the sizes of its parts and what is cold in its summary."""
    columns = (interactions.users, interactions.items)
    summary = {**summary, "cold": count_cold(("user", "item"), columns, labels)}
    summary["cold_rule"] = LEFT_OUT if drop_cold else JUDGED
    if drop_cold:
        interactions, labels = without_cold(interactions, labels)
        require_parts(labels, str(summary["rule"]), "all others are of users or items without a training interaction")
    parts = split_by_labels(interactions, labels, several_items=drop_cold)
    sizes = part_sizes(labels)
    users = {"valid": parts.valid.users.numel(), "test": parts.test.users.numel()}
    return interactions, replace(parts, summary={**summary, "interactions": sizes, "users_with_items": users})
