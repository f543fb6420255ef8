"""What a run's configuration says of its data."""

from __future__ import annotations

from dataclasses import dataclass

from mgqe.checks.scalars import as_int


@dataclass(frozen=True)
class DataSettings:
    """Where a run's data lie, how their files are laid out, how they are divided and what is sampled from them.

    data: `planted`, a known set's name, or a file; data_dir, format and the column names go with it.
    separator, quote, header: how a file of text is laid out, see mgqe.recsys.data.columns.Columns.
    context_columns: of a file of one's own, for task "ctr": names of its columns of categories, joined by commas.
    split: a rule of mgqe.recsys.data.splits; None: leave-one-out, or for task "ctr" without a time, at random.
    valid, test: files to validate and test on, where data is a file to train on; they are instead of a rule.
    negatives: for each positive that is trained on. eval_negatives, eval_users: of sampled metrics.
    """

    data: str = "planted"
    data_dir: str | None = None
    format: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    separator: str | None = None
    quote: str = '"'
    header: bool | None = None
    context_columns: str = ""
    split: str | None = None
    valid: str | None = None
    test: str | None = None
    seed: int = 7
    negatives: int = 4
    eval_negatives: int = 99
    eval_users: int = 10_000

    def __post_init__(self) -> None:
        for name in ("negatives", "eval_negatives", "eval_users"):
            as_int(name, getattr(self, name), 1)
