"""Runs an action in a process and kills it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def run_and_kill(action: Callable[[], object], seconds: float | None) -> bool:
    """Run an action in a forked process and kill it after ``seconds``; returns whether it had not ended by then.

    seconds: None lets the process end. Raises RuntimeError if the action itself failed.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(null, stream)
            action()
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the process ended with status {code}")
    return code != 0
