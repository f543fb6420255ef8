"""The warm-up schedule and the step watcher, alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import mgqe
from mgqe.nn.schedule import Event, WarmUp, is_planned_again
from mgqe.nn.step_watcher import StepWatcher


def warm_up(steps: int = 2, revive_every: int = 3) -> WarmUp:
    return WarmUp(WarmUp.buffers(torch.device("cpu")), steps, revive_every)


def test_the_start_is_due_after_the_warm_up_and_revival_at_intervals() -> None:
    schedule, events = warm_up(), []
    for _ in range(9):
        events.append(schedule.count_pass().name)
        if events[-1] == "START":
            schedule.end()
    assert events == ["NONE", "NONE", "START", "NONE", "NONE", "REVIVE", "NONE", "NONE", "REVIVE"]
    assert schedule.passes == 9
    assert schedule.is_over


def test_a_start_that_failed_is_due_again() -> None:
    schedule = warm_up(steps=0)
    assert [schedule.count_pass() for _ in range(2)] == [Event.START, Event.START]


def test_revival_waits_for_a_step() -> None:
    schedule = warm_up(revive_every=2)
    schedule.set(1, over=True)
    assert [schedule.count_pass(stepped=False) for _ in range(2)] == [Event.NONE, Event.NONE]
    assert schedule.count_pass() is Event.REVIVE
    schedule.set(1, over=True)
    assert schedule.count_pass(may_revive=False) is Event.NONE


@pytest.mark.parametrize(
    ("warmup_steps", "passes"),
    [(1000, [1500, 2250, 3375, 5062]), (40, [150, 225, 337, 505, 757, 1135, 1702, 2553, 3829])],
)
def test_plans_are_made_anew_each_time_the_passes_have_grown_by_half(warmup_steps: int, passes: list[int]) -> None:
    assert [each for each in range(1, 5500) if is_planned_again(each, warmup_steps)] == passes


def test_a_new_plan_waits_for_a_step_and_revival_for_the_next() -> None:
    schedule = warm_up(revive_every=75)
    schedule.set(149, over=True)
    assert [schedule.count_pass(stepped=False) for _ in range(2)] == [Event.NONE, Event.NONE]
    assert [schedule.count_pass() for _ in range(3)] == [Event.PLAN, Event.REVIVE, Event.NONE]


def test_buffers_that_other_code_writes_are_read_again() -> None:
    buffers = WarmUp.buffers(torch.device("cpu"))
    schedule = WarmUp(buffers, 5, 3)
    buffers["steps"].fill_(7)
    buffers["started"].fill_(True)
    assert schedule.is_over
    assert schedule.passes == 7
    buffers.update(WarmUp.buffers(torch.device("cpu")))  # as load_state_dict(assign=True) does
    schedule.reload()
    assert not schedule.is_over
    assert schedule.passes == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_count_in_their_own_buffers(duplicate) -> None:
    buffers = WarmUp.buffers(torch.device("cpu"))
    schedule = WarmUp(buffers, 5, 3)
    schedule.count_pass()
    other_buffers, other = duplicate((buffers, schedule))
    other.count_pass()
    assert (schedule.passes, other.passes) == (1, 2)
    assert (int(buffers["steps"]), int(other_buffers["steps"])) == (1, 2)


def test_a_watcher_tells_rows_from_codebooks() -> None:
    rows = nn.Parameter(torch.zeros(4, 2))
    quantizer = mgqe.DPQEmbedding(4, 2, num_centroids=2).quantizer
    watcher = StepWatcher()
    assert watcher.rows_stepped(rows)  # before the first pass
    assert watcher.codebooks_stepped(quantizer)
    watcher.remember(quantizer, rows)
    assert not watcher.rows_stepped(rows)
    assert not watcher.codebooks_stepped(quantizer)
    with torch.no_grad():
        rows.add_(1)
    assert watcher.rows_stepped(rows)
    assert not watcher.codebooks_stepped(quantizer)
    watcher.remember(quantizer, rows)
    with torch.no_grad():
        quantizer.codebooks[0].add_(1)
    assert not watcher.rows_stepped(rows)
    assert watcher.codebooks_stepped(quantizer)
    assert watcher.same_rows(rows)
    assert not watcher.same_rows(rows.detach())
    assert copy.deepcopy(watcher).rows_stepped(rows)
