"""A data set in three parts: what a model trains on, what validates it, what it is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mgqe.recsys.data.interactions import FileIds, Interactions, offsets_of

TRAIN, VALID, TEST = range(3)  # labels of interactions


@dataclass(frozen=True)
class HeldOut:
    """Interactions that are not trained on, by user.

    users: int64 (u,), ascending, each with one item or more. items: int64 (n,), grouped by user, in order.
    offsets: int64 (u + 1,); the items of users[i] are items[offsets[i] : offsets[i + 1]].
    """

    users: Tensor
    items: Tensor
    offsets: Tensor

    @classmethod
    def one_each(cls, users: Tensor, items: Tensor) -> HeldOut:
        """One item for each of `users`: both int64 (u,)."""
        return cls(users, items, torch.arange(users.numel() + 1))

    @classmethod
    def of_pairs(cls, users: Tensor, items: Tensor) -> HeldOut:
        """From pairs (n,) sorted by user."""
        distinct, counts = torch.unique_consecutive(users, return_counts=True)
        return cls(distinct, items, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))

    @property
    def owners(self) -> Tensor:
        """int64 (n,): for each item, the place of its user in `users`."""
        return torch.arange(self.users.numel()).repeat_interleave(self.offsets.diff())

    def of_users(self, places: Tensor) -> HeldOut:
        """Those of users[places], places int64 (v,) ascending."""
        chosen = torch.zeros(self.users.numel(), dtype=torch.bool)
        chosen[places] = True
        owners = self.owners
        return HeldOut.of_pairs(self.users[owners][chosen[owners]], self.items[chosen[owners]])


@dataclass(frozen=True)
class Split:
    """The training part, and what is held out of it to validate and to test.

    train_users, train_items: int64 (n,), users ascending, each user's items in time order.
    train_offsets: int64 (num_users + 1,), where each user's run starts.
    summary: how the data were split and what each part holds, for the results.
    several: whether a user may have several items in a part, so that figures of recall are reported too.
    """

    num_users: int
    num_items: int
    train_users: Tensor
    train_items: Tensor
    train_offsets: Tensor
    valid: HeldOut
    test: HeldOut
    summary: dict[str, Any] = field(default_factory=dict)
    several_items: bool = False

    @property
    def users(self) -> Tensor:
        """Users with test items: int64 (u,)."""
        return self.test.users

    @property
    def valid_items(self) -> Tensor:
        """Validation items, by user: int64 (n,)."""
        return self.valid.items

    @property
    def test_items(self) -> Tensor:
        """Test items, by user: int64 (n,)."""
        return self.test.items

    @property
    def user_counts(self) -> Tensor:
        """Training interactions per user: int64 (num_users,)."""
        return torch.bincount(self.train_users, minlength=self.num_users)

    @property
    def item_counts(self) -> Tensor:
        """Training interactions per item: int64 (num_items,)."""
        return torch.bincount(self.train_items, minlength=self.num_items)

    def histories(self, test: bool) -> tuple[Tensor, Tensor]:
        """What each user had before the part that is judged: (items (n,), offsets (num_users + 1,)), int64.

        Before validation that is the training part; before the test, the validation items follow it.
        """
        if not test:
            return self.train_items, self.train_offsets
        users = torch.cat([self.train_users, self.valid.users[self.valid.owners]])
        order = users.argsort(stable=True)  # a user's validation items stay behind the training items
        return torch.cat([self.train_items, self.valid.items])[order], offsets_of(users[order], self.num_users)


def split_by_labels(interactions: Interactions, labels: Tensor, several_items: bool = True) -> Split:
    """Divide by label (TRAIN, VALID or TEST), int64 (n,); nothing is left out and the rows stay."""
    users, items = interactions.users, interactions.items
    train, valid, test = (labels == label for label in (TRAIN, VALID, TEST))
    return Split(
        num_users=interactions.num_users,
        num_items=interactions.num_items,
        train_users=users[train],
        train_items=items[train],
        train_offsets=offsets_of(users[train], interactions.num_users),
        valid=HeldOut.of_pairs(users[valid], items[valid]),
        test=HeldOut.of_pairs(users[test], items[test]),
        several_items=several_items,
    )


def cold_masks(columns: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """For each of `columns` (n,) of rows: bool (n,), whether the row is one that no training interaction has."""
    train, found = labels == TRAIN, []
    for rows in columns:
        size = int(rows.max()) + 1 if rows.numel() else 0
        found.append(torch.bincount(rows[train], minlength=size)[rows] == 0)
    return found


def count_cold(fields: Sequence[str], columns: Sequence[Tensor], labels: Tensor) -> dict[str, dict[str, int]]:
    """Part -> how many of its ids no training interaction has, by field, and how many interactions have such an id."""
    masks = cold_masks(columns, labels)
    any_cold = torch.stack(masks).any(0)
    found = {}
    for part, label in (("valid", VALID), ("test", TEST)):
        inside = labels == label
        ids = {
            (f"{name}s" if name in ("user", "item") else name): int(torch.unique(rows[mask & inside]).numel())
            for name, rows, mask in zip(fields, columns, masks, strict=True)
        }
        found[part] = {**ids, "interactions": int((any_cold & inside).sum())}
    return found


def part_sizes(labels: Tensor) -> dict[str, int]:
    """Interactions in each part."""
    train, valid, test = torch.bincount(labels, minlength=3).tolist()
    return {"train": train, "valid": valid, "test": test}


def require_parts(labels: Tensor, rule: str, why: str) -> None:
    """ValueError unless each of the three parts has an interaction; `why` says what the interactions are like.

    rule: that divided the data, or "files".
    """
    what = "the files leave" if rule == "files" else f"--split {rule} leaves"
    for part, size in part_sizes(labels).items():
        if size == 0:
            name = {"train": "training", "valid": "validation", "test": "test"}[part]
            raise ValueError(f"{what} no interaction for the {name} part: {why}")


def without_cold(interactions: Interactions, labels: Tensor) -> tuple[Interactions, Tensor]:
    """The interactions whose user and item are in the training part, numbered anew, and their labels."""
    masks = cold_masks((interactions.users, interactions.items), labels)
    stays = ~torch.stack(masks).any(0)
    users, user_ids = renumber(interactions.users[stays], interactions.user_ids)
    items, item_ids = renumber(interactions.items[stays], interactions.item_ids)
    times = None if interactions.times is None else interactions.times[stays]
    offsets = offsets_of(users, len(user_ids))
    return Interactions(users, items, offsets, user_ids, item_ids, interactions.num_repeats, times), labels[stays]


def renumber(rows: Tensor, ids: FileIds) -> tuple[Tensor, FileIds]:
    """Rows (n,) of `ids` -> rows of the ids that occur, and those ids, in the same order."""
    present, places = torch.unique(rows, return_inverse=True)
    return places, FileIds(ids.ids.gather(present.numpy()))
