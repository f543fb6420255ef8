"""What was done with the data before training, in words, from the summaries that a run's record holds, too."""

from __future__ import annotations

from typing import Any

LEFT_OUT_BY = {"left_out_by_min_count": "the minimum count of items", "left_out_by_k_core": "the k-core"}
HELD_OUT = {"leave-one-out": "the last item", "random": "a random item"}


def data_note(summary: dict[str, Any], split: dict[str, Any]) -> str:
    """How much there is, what was left out and why, in one line."""
    if "clicks" in summary:  # a log of clicks, whose rows are nobody's
        rows, clicks = summary["interactions"], sum(summary["clicks"].values())
        return f"{rows:,} rows of {len(summary['fields'])} fields, {clicks:,} clicks; nothing left out"
    owners = "sessions" if "sessions" in summary else "users"
    said = [f"{summary[owners]:,} {owners}, {summary['items']:,} items, {summary['interactions']:,} interactions"]
    if kept := summary.get("repeats_kept"):
        said.append(f"{kept:,} repeats stay")
    if short := split.get("too_short"):
        said.append(f"{short:,} {owners} too short to be judged")
    if short := summary.get("untrained"):
        said.append(f"{short:,} too short to train on")
    return "; ".join([*said, _left_out(owners, summary, split)])


def split_note(summary: dict[str, Any], split: dict[str, Any]) -> str:
    """How the data were divided, and how many users are judged, in one line."""
    owner = "session" if "sessions" in summary else "user"
    rule = split.get("rule", "as published")
    said = f"split {rule}"
    if rule in HELD_OUT:
        said += f": {HELD_OUT[rule]} of each {owner} is held out"
    if order := split.get("order"):
        by_file = order.startswith("the file's") and "untrained" not in summary  # models of sequences need an order
        said += f" (order: {order}{'; --split random where that is no order of time' if by_file else ''})"
    if valid := split.get("valid"):
        said += f"; validation: {valid}"
    judged = judged_note(summary)
    return f"{said}; {judged} are judged" if judged else said


def judged_note(summary: dict[str, Any]) -> str:
    """How many are judged in the test, as `321 of 400 users` or `9,470 positive rows`; empty for logs of clicks."""
    if (rows := summary.get("judged_positives")) is not None:
        return f"{rows:,} positive rows"
    owners = "sessions" if "sessions" in summary else "users"
    judged = summary.get(f"judged_{owners}")
    return "" if judged is None else f"{judged:,} of {summary[owners]:,} {owners}"


def _left_out(owners: str, summary: dict[str, Any], split: dict[str, Any]) -> str:
    parts = []
    repeats = summary.get("repeats_left_out", 0) + split.get("repeats_left_out", 0)
    if repeats:
        keep = "; --repeats keep leaves them in" if "untrained" in summary else ""  # of models of sequences
        parts.append(f"{repeats:,} repeats (the first of each item stays{keep})")
    for name, what in LEFT_OUT_BY.items():
        if any((fewer := split.get(name, {})).values()):
            listed = ", ".join(f"{number:,} {name}" for name, number in fewer.items() if number)
            parts.append(f"{listed} by {what}")
    cold = sum(part["interactions"] for part in split.get("cold", {}).values())
    if cold and split["cold_rule"].startswith("left out"):
        parts.append(f"{cold:,} interactions to judge, of {owners} or items that are not in training")
    return f"left out: {'; '.join(parts)}" if parts else "nothing left out"
