"""The command `mgqe`. Nothing but Python is needed to import this."""

from __future__ import annotations

import os
import sys

from mgqe.cli.packages import missing_packages

NEEDED = ("typer", "rich")  # by every command


def main() -> None:
    """Entry point: run the command line, or say in one line what has to be installed for it."""
    if missing := missing_packages(NEEDED):
        print(f"mgqe: the command line needs {', '.join(missing)}; run: pip install 'mgqe[cli]'", file=sys.stderr)
        raise SystemExit(1)
    from mgqe.cli.app import app

    try:
        app()
    finally:
        _flush()


def _flush() -> None:
    """Write what is left, unless nobody reads it any more, as after ``mgqe ... | head -1``."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
