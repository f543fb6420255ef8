"""The division of a log of clicks into training, validation and test rows, by their numbers in the log."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mgqe.ids.strings import hash_integers
from mgqe.recsys.data.held_out import TEST, TRAIN, VALID
from mgqe.recsys.data.splits import DEFAULT_VALID, SplitRule

PARTS = {TRAIN: "train", VALID: "valid", TEST: "test"}
AT_RANDOM = "at random, 80/10/10"


@dataclass(frozen=True)
class RowParts:
    """Which part each row is in: a tenth each, drawn by `seed`, for validation and test; or the last rows.

    latest: the shares of the log for validation and for the test, whose rows are the last ones; None: at random.
    """

    seed: int
    latest: tuple[Fraction, Fraction] | None = None

    @classmethod
    def parse(cls, rule: str | None, seed: int) -> RowParts:
        """From `latest:10%/20%` or `latest:20%`, as in mgqe.recsys.data.splits; ValueError for another rule."""
        if rule is None:
            return cls(seed)
        parsed = SplitRule.parse(rule)
        shares = [value for value in parsed.values if isinstance(value, Fraction)]
        if parsed.kind != "latest":
            raise ValueError(
                f"--split {rule} is for logs of users and items: a log of clicks is divided at random, without "
                "--split, or by the order of its rows, --split latest:10%/10%"
            )
        return cls(0, (shares[0] if len(shares) > 1 else DEFAULT_VALID * (1 - shares[-1]), shares[-1]))

    @property
    def name(self) -> str:
        """The rule, for the results."""
        if self.latest is None:
            return AT_RANDOM
        return "latest:" + "/".join(f"{100 * float(share):g}%" for share in self.latest)

    def of_rows(self, first: int, num: int, total: int) -> np.ndarray:
        """TRAIN, VALID or TEST for `num` rows from `first` on, of `total` in the log: uint8 (num,)."""
        rows = np.arange(first, first + num, dtype=np.uint64)
        if self.latest is None:
            tenth = hash_integers(rows, self.seed) % np.uint64(10)
            return np.where(tenth < 8, TRAIN, np.where(tenth == 8, VALID, TEST)).astype(np.uint8)
        valid, test = (int(share * total) for share in self.latest)
        return np.where(rows < total - valid - test, TRAIN, np.where(rows < total - test, VALID, TEST)).astype(np.uint8)
