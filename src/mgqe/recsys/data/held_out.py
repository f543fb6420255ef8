"""The split of a data set: its training, validation and test part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mgqe.recsys.data.interactions import FileIds, Interactions, offsets_of

TRAIN, VALID, TEST = range(3)  # labels of interactions
# Of interactions that are read before a judged one, and neither trained on nor judged.
READ_BEFORE_VALID, READ_BEFORE_TEST = 3, 4


@dataclass(frozen=True)
class HeldOut:
    """Held-out interactions, which no model trains on, by user.

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
        """For each item, the position of its user in `users`: int64 (n,)."""
        return torch.arange(self.users.numel()).repeat_interleave(self.offsets.diff())

    def of_users(self, positions: Tensor) -> HeldOut:
        """The interactions of users[positions], positions int64 (v,) ascending."""
        chosen = torch.zeros(self.users.numel(), dtype=torch.bool)
        chosen[positions] = True
        owners = self.owners
        return HeldOut.of_pairs(self.users[owners][chosen[owners]], self.items[chosen[owners]])


@dataclass(frozen=True)
class Split:
    """The training part, and the interactions that are held out for validation and for the test.

    train_users, train_items: int64 (n,), users ascending, each user's items in time order.
    train_offsets: int64 (num_users + 1,); the items of user u are [offsets[u], offsets[u + 1]).
    summary: how the data were split and the size of each part, for the results.
    several_items: whether a user may have several items in a held-out part, so that recall is reported too.
    repeats: whether users take items again, so that those that they had are ranked like any others.
    read: what is read before the judged items of validation and of the test, and neither trained on nor judged.
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
    repeats: bool = False
    read: tuple[HeldOut, HeldOut] | None = None

    @property
    def user_counts(self) -> Tensor:
        """Training interactions per user: int64 (num_users,)."""
        return torch.bincount(self.train_users, minlength=self.num_users)

    @property
    def item_counts(self) -> Tensor:
        """Training interactions per item: int64 (num_items,)."""
        return torch.bincount(self.train_items, minlength=self.num_items)

    def histories(self, test: bool) -> tuple[Tensor, Tensor]:
        """The items of each user before a held-out part: (items (n,), offsets (num_users + 1,)), int64.

        Before validation these are the training items; before the test, the validation items follow them. What is only
        read comes before the items of its part.
        """
        later = [] if self.read is None else [self.read[0]]
        if test:
            later += [self.valid] if self.read is None else [self.valid, self.read[1]]
        if not later:
            return self.train_items, self.train_offsets
        users = torch.cat([self.train_users, *(part.users[part.owners] for part in later)])
        order = users.argsort(stable=True)  # keeps a user's later items behind the earlier ones
        items = torch.cat([self.train_items, *(part.items for part in later)])
        return items[order], offsets_of(users[order], self.num_users)

    def known(self, test: bool) -> tuple[Tensor, Tensor]:
        """The items of each user that are not ranked in a held-out part: as `histories`, none where items repeat."""
        if not self.repeats:
            return self.histories(test)
        return self.train_items[:0], torch.zeros(self.num_users + 1, dtype=torch.int64)


def split_by_labels(interactions: Interactions, labels: Tensor, several_items: bool = True) -> Split:
    """Split by labels (TRAIN, VALID, ...), int64 (n,). No interaction is left out, and rows keep their numbers."""
    users, items = interactions.users, interactions.items
    train = labels == TRAIN

    def part(label: int) -> HeldOut:
        return HeldOut.of_pairs(users[labels == label], items[labels == label])

    return Split(
        num_users=interactions.num_users,
        num_items=interactions.num_items,
        train_users=users[train],
        train_items=items[train],
        train_offsets=offsets_of(users[train], interactions.num_users),
        valid=part(VALID),
        test=part(TEST),
        several_items=several_items and not interactions.keeps_repeats,
        repeats=interactions.keeps_repeats,
        read=(part(READ_BEFORE_VALID), part(READ_BEFORE_TEST)) if interactions.keeps_repeats else None,
    )


def cold_masks(columns: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """For each of `columns` (n,): bool (n,), whether an id is cold, that is, no training interaction has it."""
    train, masks = labels == TRAIN, []
    for rows in columns:
        size = int(rows.max()) + 1 if rows.numel() else 0
        masks.append(torch.bincount(rows[train], minlength=size)[rows] == 0)
    return masks


def count_cold(fields: Sequence[str], columns: Sequence[Tensor], labels: Tensor) -> dict[str, dict[str, int]]:
    """Part -> the number of its cold ids, by field, and the number of interactions with a cold id."""
    masks = cold_masks(columns, labels)
    any_cold = torch.stack(masks).any(0)
    counts = {}
    for part, label in (("valid", VALID), ("test", TEST)):
        inside = labels == label
        ids = {
            (f"{name}s" if name in ("user", "session", "item") else name): int(
                torch.unique(rows[mask & inside]).numel()
            )
            for name, rows, mask in zip(fields, columns, masks, strict=True)
        }
        counts[part] = {**ids, "interactions": int((any_cold & inside).sum())}
    return counts


def part_sizes(labels: Tensor) -> dict[str, int]:
    """Part -> number of its interactions."""
    train, valid, test = torch.bincount(labels, minlength=3)[:3].tolist()
    return {"train": train, "valid": valid, "test": test}


def require_parts(labels: Tensor, rule: str, why: str) -> None:
    """ValueError unless each of the three parts has an interaction.

    rule: the rule that split the data, or "files". why: the reason, for the message.
    """
    what = "the files leave" if rule == "files" else f"--split {rule} leaves"
    for part, size in part_sizes(labels).items():
        if size == 0:
            name = {"train": "training", "valid": "validation", "test": "test"}[part]
            raise ValueError(f"{what} no interaction for the {name} part: {why}")


def without_cold(interactions: Interactions, labels: Tensor) -> tuple[Interactions, Tensor]:
    """The interactions whose user and item are in the training part, with new row numbers, and their labels.

    Of a session only the item must be there: it is read, and has no row of its own.
    """
    known = ~torch.stack(cold_masks(tuple(trained_columns(interactions).values()), labels)).any(0)
    return only(interactions, known), labels[known]


def trained_columns(interactions: Interactions) -> dict[str, Tensor]:
    """Name -> rows (n,) of what has no vector without a training interaction: items, and users that are no sessions."""
    users = (
        {}
        if interactions.owner == "session" and interactions.keeps_repeats
        else {interactions.owner: interactions.users}
    )
    return {**users, "item": interactions.items}


def judge_last(users: Tensor, labels: Tensor) -> Tensor:
    """Labels (n,) in which of each user's VALID and TEST interactions only the last is judged; users (n,) ascending.

    The others are read before it. One that nothing precedes is read, too, since nothing could be ranked from it.
    """
    labels = labels.clone()
    starts = torch.ones_like(users, dtype=torch.bool)
    starts[1:] = users[1:] != users[:-1]
    for label, read in ((VALID, READ_BEFORE_VALID), (TEST, READ_BEFORE_TEST)):
        positions = (labels == label).nonzero().squeeze(1)
        last = torch.ones_like(positions, dtype=torch.bool)
        last[:-1] = users[positions[1:]] != users[positions[:-1]]
        labels[positions[~last | starts[positions]]] = read
    return labels


def core(interactions: Interactions, k: int) -> Interactions:
    """The k-core: users and items with fewer than `k` interactions are left out until none is; rows are renumbered.

    ValueError if nothing is left.
    """
    kept = torch.ones(len(interactions), dtype=torch.bool)
    while True:
        few = torch.zeros_like(kept)
        for rows in (interactions.users, interactions.items):
            few |= torch.bincount(rows[kept], minlength=int(rows.max()) + 1)[rows] < k
        few &= kept
        if not few.any():
            break
        kept &= ~few
        if not kept.any():
            raise ValueError(
                f"--k-core {k}: expected users and items with {k} interactions with each other, but none of the "
                f"{len(interactions):,} interactions is left: ask for fewer"
            )
    return only(interactions, kept)


def frequent(interactions: Interactions, min_count: int) -> Interactions:
    """The interactions with items that have `min_count` or more; rows are renumbered. ValueError if nothing is left."""
    kept = torch.bincount(interactions.items)[interactions.items] >= min_count
    if not kept.any():
        most = int(torch.bincount(interactions.items).max())
        raise ValueError(f"--min-count {min_count}: no item has more than {most} interactions: ask for fewer")
    return only(interactions, kept)


def only(interactions: Interactions, kept: Tensor) -> Interactions:
    """The interactions that a mask (n,) names, with new numbers for the users and items that have any."""
    users, user_ids = renumber(interactions.users[kept], interactions.user_ids)
    items, item_ids = renumber(interactions.items[kept], interactions.item_ids)
    times = None if interactions.times is None else interactions.times[kept]
    offsets = offsets_of(users, len(user_ids))
    return replace(
        interactions, users=users, items=items, offsets=offsets, user_ids=user_ids, item_ids=item_ids, times=times
    )


def renumber(rows: Tensor, ids: FileIds) -> tuple[Tensor, FileIds]:
    """Numbers rows (n,) of `ids` by the ids that occur: the new rows, and these ids in their former order."""
    present, positions = torch.unique(rows, return_inverse=True)
    return positions, FileIds(ids.ids.gather(present.numpy()))
