"""How long training goes on, by the batches so far."""

from __future__ import annotations

import time
from collections.abc import Callable

from mgqe.recsys.train.loop import EpochReport


class EpochClock:
    """What is left of an epoch and of its phase, while reports of one run come in.

    now: the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.epoch: tuple[str, int] | None = None
        self.start = (0.0, 0)  # time, and batches that were done

    def left(self, report: EpochReport) -> tuple[float, float] | None:
        """Seconds until the epoch's last batch, and at most until the phase's, judging left out.

        None for the first report of an epoch, and for its end.
        """
        if self.epoch != (report.phase, report.epoch):
            self.epoch, self.start = (report.phase, report.epoch), (self.now(), report.batch)
        started, done = self.start
        if report.batch <= done or report.batch >= report.batches:
            return None
        per_batch = (self.now() - started) / (report.batch - done)
        epochs = report.max_epochs - report.epoch
        of_epoch = per_batch * (report.batches - report.batch)
        return of_epoch, of_epoch + per_batch * report.batches * epochs


def in_words(seconds: float) -> str:
    """Such as "40 s", "12 min" or "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
