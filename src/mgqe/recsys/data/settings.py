"""The settings of a run's data."""

from __future__ import annotations

from dataclasses import dataclass

from mgqe.checks.scalars import as_int, optional_int

REPEATS = ("keep", "drop")


@dataclass(frozen=True)
class DataSettings:
    """A run's data, the layout of their files, their split, and the negatives that are sampled.

    data: `planted`, the name of a known data set, or a file; data_dir, format and the column names describe it.
    session_column: instead of user_column, for task "sequential": rows belong to sessions.
    repeats: "keep" or "drop" what a user takes again, "keep" for task "sequential" alone; None: keep them in sessions.
    separator, quote, header: the layout of a text file, see mgqe.recsys.data.columns.Columns.
    context_columns: for a user's own file and task "ctr": names of its columns of categories, joined by commas.
    split: a rule of mgqe.recsys.data.splits; None: leave-one-out, or for task "ctr" without times, at random.
    min_count: items with fewer interactions are left out first; in logs of clicks, values that occur less often share a
        row, see mgqe.recsys.data.clicks.encode.Encoding. None: none are, and the log's own number.
    k_core: users and items with fewer interactions, counted anew until none has, are left out before the split.
    valid, test: files for validation and test, if `data` is a file for training; they replace a rule.
    hash_size: of logs of clicks, see Encoding; None: no hashing. log_rows: of the log that is made up, criteo-like.
    negatives: per positive in training. eval_negatives: that sampled metrics rank an item among; 0: no sampled metrics.
    eval_users: that are judged, at most.
    """

    data: str = "planted"
    data_dir: str | None = None
    format: str | None = None
    user_column: str | None = None
    session_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    separator: str | None = None
    quote: str = '"'
    header: bool | None = None
    context_columns: str = ""
    split: str | None = None
    repeats: str | None = None
    min_count: int | None = None
    k_core: int = 1
    valid: str | None = None
    test: str | None = None
    hash_size: int | None = None
    log_rows: int = 200_000
    seed: int = 7
    negatives: int = 4
    eval_negatives: int = 99
    eval_users: int = 10_000

    def __post_init__(self) -> None:
        as_int("log_rows", self.log_rows, 1000)
        for name in ("min_count", "hash_size"):
            optional_int(name, getattr(self, name), 1)
        if self.session_column is not None and self.user_column is not None:
            raise ValueError(
                f"--session-column {self.session_column} and --user-column {self.user_column}: a row belongs to a "
                "session or to a user: give one of them"
            )
        if self.repeats not in (None, *REPEATS):
            raise ValueError(f"--repeats must be one of {', '.join(REPEATS)}, got {self.repeats}")
        for name in ("k_core", "negatives", "eval_users"):
            as_int(name, getattr(self, name), 1)
        as_int("eval_negatives", self.eval_negatives, 0)
