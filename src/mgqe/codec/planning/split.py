"""One budget for several tables: bytes go where they take most off the sum of the tables' losses."""

from __future__ import annotations

from collections.abc import Sequence

Step = tuple[int, float]  # bytes, loss


def split_budget(ladders: Sequence[Sequence[Step]], budget: int) -> list[int] | None:
    """Bytes for each table, together at most ``budget``; None if not even the smallest steps fit.

    Every table starts at its smallest step; then, time and again, the one climbs that gains most a byte (steps that lie
    above the line between two others are passed over), as long as that fits. What is left at the end goes to the first
    tables that can use it.

    Args:
        ladders: of each table its steps, by rising bytes and falling loss.
    """
    at = [0] * len(ladders)
    left = budget - sum(ladder[0][0] for ladder in ladders)
    if left < 0:
        return None
    climbs = [_best_climb(ladder, 0, left) for ladder in ladders]
    while any(climb is not None for climb in climbs):
        table, (_, step) = max(((t, c) for t, c in enumerate(climbs) if c is not None), key=lambda pair: pair[1][0])
        left -= ladders[table][step][0] - ladders[table][at[table]][0]
        at[table] = step
        for t, climb in enumerate(climbs):
            if t == table or (climb is not None and ladders[t][climb[1]][0] - ladders[t][at[t]][0] > left):
                climbs[t] = _best_climb(ladders[t], at[t], left)
    return [ladder[step][0] for ladder, step in zip(ladders, at, strict=True)]


def _best_climb(ladder: Sequence[Step], at: int, left: int) -> tuple[float, int] | None:
    """(loss taken off a byte, step) of the step that gains most a byte among those that fit."""
    nbytes, loss = ladder[at]
    best = None
    for step in range(at + 1, len(ladder)):
        more = ladder[step][0] - nbytes
        if more > left:
            break
        gain = (loss - ladder[step][1]) / more
        if best is None or gain > best[0]:
            best = (gain, step)
    return best
