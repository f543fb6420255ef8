"""The most memory of a run, where the system can say it of a run alone."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
OF_RUN, OF_PROCESS = "run", "process"


def start_peak() -> str:
    """Begin to measure anew; returns what `peak_memory` is then of: the run, or the process since its start.

    Linux forgets a process's high-water mark when a 5 is written to clear_refs. Where it does not, a run that follows
    others in a process has the mark of the largest of them.
    """
    with suppress(OSError):
        CLEAR.write_text("5")
        return OF_RUN
    return OF_PROCESS


def peak_memory() -> int | None:
    """The most memory that the process has had in use since `start_peak`, or ever; None where the system is silent."""
    with suppress(OSError, StopIteration, ValueError):
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
