"""Folders of files that belong together, read while another process may be writing them again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mgqe.files.aside import has_writer
from mgqe.files.container import ArtifactError

Result = TypeVar("Result")

# For files that do not belong together, once no process is seen to write one: the last may be about to get its name.
# Attempts are counted, not seconds, because those would be used up where the machine stands still for a while.
ATTEMPTS = 500


class MixedFiles(ArtifactError):
    """Files of several saves, or not all of one; perhaps only for the moment."""


def read_consistent(folder: Path, read: Callable[[], Result], state: Callable[[], object] = lambda: None) -> Result:
    """What ``read`` returns of a folder at a moment when its files belong together.

    Args:
        read: raises MixedFiles where the files do not belong together.
        state: what changes when the folder is written again.

    Raises:
        MixedFiles: they did not belong together for as long as 500 attempts, and no process was seen to write one.
            Other errors of ``read``, once no process writes.
    """
    left = ATTEMPTS
    while True:
        before = state()
        try:
            result = read()
            if state() == before:
                return result
        except (OSError, ValueError, RuntimeError) as error:
            if state() != before or has_writer(folder):
                left = ATTEMPTS
            elif not isinstance(error, MixedFiles) or left <= 0:
                raise
        left -= 1
        time.sleep(0.01)
