"""MovieLens-1M with the split and the test negatives that "Neural Collaborative Filtering" published."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.datasets import PUBLISHED, find_file
from mgqe.recsys.data.held_out import HeldOut, Split
from mgqe.recsys.data.interactions import Interactions, load_interactions, offsets_of

NUM_NEGATIVES = 99


@dataclass(frozen=True)
class PublishedSplit:
    """Interactions with one test item and 99 test negatives per user, as published.

    interactions: all interactions, those of the test included; each user's are in no time order.
    test_items: int64 (num_users,). test_negatives: int64 (num_users, 99), different items per user. In the published
    files 156 of them are the user's own test item. The authors' evaluation keeps one score per item, so that such a
    negative is no rival; sampled_ranks leaves it out as well.
    """

    interactions: Interactions
    test_items: Tensor
    test_negatives: Tensor

    def split(self, seed: int) -> Split:
        """Test items as published; the validation item of each user is one of the others, chosen by `seed`.

        The authors published no validation part. Holding one out leaves one training pair per user fewer than they had:
        988,129 of 994,169.
        """
        data = self.interactions
        train = data.items != self.test_items[data.users]
        users, items = data.users[train], data.items[train]
        offsets = offsets_of(users, data.num_users)
        lengths = offsets.diff()
        if int(lengths.min()) < 2:
            user = data.user_ids.id(int(lengths.argmin()))
            raise ValueError(f"user {user!r} has {int(lengths.min()) + 1} items: expected 3 or more of each user")
        chance = torch.rand(data.num_users, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        valid = offsets[:-1] + (chance * lengths).long().clamp(max=lengths - 1)
        trained = torch.ones(users.numel(), dtype=torch.bool)
        trained[valid] = False
        all_users = torch.arange(data.num_users)
        return Split(
            num_users=data.num_users,
            num_items=data.num_items,
            train_users=users[trained],
            train_items=items[trained],
            train_offsets=offsets_of(users[trained], data.num_users),
            valid=HeldOut.one_each(all_users, items[valid]),
            test=HeldOut.one_each(all_users, self.test_items),
            summary={"rule": "as published", "valid": "one of each user's other items, chosen by the seed"},
        )


def load_published(name: str, data_dir: Path | str | None = None) -> PublishedSplit:
    """The data set `name` of PUBLISHED below `data_dir`; ValueError if a file is missing or is another edition."""
    known = PUBLISHED[name]
    paths = [find_file(name, file.file, data_dir, file.obtain, known.home) for file in known.files]
    data = read_published(*paths)
    in_order = torch.stack([data.interactions.users, data.interactions.items])
    digests = [hashlib.sha256(in_order.numpy().tobytes()).hexdigest()]
    digests += [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths[1:]]
    for path, file, digest in zip(paths, known.files, digests, strict=True):
        if digest != file.sha256:
            raise ValueError(
                f"{path} is another edition of {name}: expected sha256 {file.sha256[:12]}... ({file.digest_of}), got "
                f"{digest[:12]}...; to obtain it: {file.obtain} ({known.home})"
            )
    return data


def read_published(pairs: Path, rating: Path, negative: Path) -> PublishedSplit:
    """Read the three files.

    pairs: Parquet with the columns `userID`, `movieID`, in the order of MovieLens' ratings.dat. rating: one line per
    user, `user item rating time`. negative: one line per user, `(user,item)` and 99 items. Both number users from 0 in
    the order of their ids, and items from 0 in the order of their first occurrence in `pairs`.
    """
    data = load_interactions(pairs, "parquet", Columns("userID", "movieID"))
    items = _rows_by_appearance(data)
    tests = _numbers(rating, data.num_users, 4)[:, :2]
    negatives = _numbers(negative, data.num_users, 2 + NUM_NEGATIVES)
    users = torch.arange(data.num_users)
    for path, numbers in ((rating, tests), (negative, negatives)):
        _check(path, numbers[:, 0] == users, "users 0, 1, 2, ... in turn")
        _check(
            path, ((numbers[:, 1:] >= 0) & (numbers[:, 1:] < data.num_items)).all(1), f"items below {data.num_items}"
        )
    _check(negative, negatives[:, 1] == tests[:, 1], f"the test item of {rating.name}")
    test_items = items[tests[:, 1]]
    has_test_item = torch.zeros(data.num_users, dtype=torch.bool)
    has_test_item[data.users[data.items == test_items[data.users]]] = True
    _check(rating, has_test_item, f"a test item among the user's own in {pairs.name}")
    ordered = negatives[:, 2:].sort(dim=1).values
    _check(negative, (ordered[:, 1:] != ordered[:, :-1]).all(1), f"{NUM_NEGATIVES} different negatives")
    return PublishedSplit(data, test_items, items[negatives[:, 2:]])


def _rows_by_appearance(data: Interactions) -> Tensor:
    """Item rows in the order of their first occurrence in the file: int64 (num_items,)."""
    # The file is sorted by user, so that its order is that of the interactions.
    first = torch.full((data.num_items,), len(data))
    return first.scatter_reduce(0, data.items, torch.arange(len(data)), "amin").argsort()


def _numbers(path: Path, lines: int, fields: int) -> Tensor:
    """The whole numbers of each line: int64 (lines, fields); ValueError names the line with another number of them."""
    rows = [re.findall(r"-?\d+", line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(rows) != lines:
        raise ValueError(f"{path}: expected {lines} lines, one per user, got {len(rows)}")
    for number, row in enumerate(rows, start=1):
        if len(row) != fields:
            raise ValueError(f"{path}, line {number}: expected {fields} whole numbers, got {len(row)}")
    return torch.tensor([[int(word) for word in row] for row in rows])


def _check(path: Path, holds: Tensor, expected: str) -> None:
    if not bool(holds.all()):
        raise ValueError(f"{path}, line {int((~holds).int().argmax()) + 1}: expected {expected}")
