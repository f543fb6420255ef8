"""The command `mgqe`. Nothing but the core is needed to import this; the rest is checked first."""

from __future__ import annotations

import sys

from mgqe.recsys import missing_extra


def main() -> None:
    """Entry point: run the command line, or say in one line what has to be installed for it."""
    missing = missing_extra()
    if missing is not None:
        print(missing, file=sys.stderr)
        raise SystemExit(1)
    from mgqe.cli import ids as ids_commands
    from mgqe.cli import plan as plan_commands
    from mgqe.cli import study as study_commands
    from mgqe.cli import verify as verify_commands
    from mgqe.cli.train import app

    assert ids_commands  # these register their commands
    assert plan_commands
    assert study_commands
    assert verify_commands
    app()
