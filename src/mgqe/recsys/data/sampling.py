"""Samples negative items: in training, items that the user does not have there; in evaluation, has nowhere."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mgqe.recsys.data.interactions import FileIds

BITSET_LIMIT = 512 * 2**20  # bytes; beyond it, seen pairs are found by binary search
SORTED_ROWS = 512  # rows of negatives that are sorted and checked at once
LEAVE_OUT = "leave the {owner} out of the data"


class SeenItems:
    """The items that each user has; tells for many (user, item) pairs at once whether they are among them.

    users, items: int64 (n,), in any order, repeats allowed. Each possible pair takes one packed bit, if all fit in
    `bitset_limit` bytes; otherwise pairs are searched among the sorted keys user * num_items + item. user_ids: the
    names of users in errors; without it, errors name their rows. owner: what errors call them.
    """

    def __init__(
        self,
        users: Tensor,
        items: Tensor,
        num_users: int,
        num_items: int,
        bitset_limit: int = BITSET_LIMIT,
        user_ids: FileIds | None = None,
        owner: str = "user",
    ) -> None:
        self.num_users, self.num_items = num_users, num_items
        self.user_ids, self.owner = user_ids, owner
        keys = torch.unique(users * num_items + items)  # sorted
        self.counts = torch.bincount(keys // num_items, minlength=num_users)
        self.stride = (num_items + 7) // 8
        self._bits: Tensor | None = None
        self._keys = keys
        if num_users * self.stride <= bitset_limit:
            of_key = torch.div(keys, num_items, rounding_mode="floor")
            item = keys - of_key * num_items
            # Distinct keys set distinct bits, so that adding them equals a bitwise or.
            bits = torch.zeros(num_users * self.stride, dtype=torch.uint8)
            bits.index_add_(0, of_key * self.stride + (item >> 3), _bit(item))
            self._bits = bits

    def on(self, device: torch.device) -> SeenItems:
        """The same, asked with tensors on a device."""
        there = copy.copy(self)
        there.counts = self.counts.to(device)
        there._bits = None if self._bits is None else self._bits.to(device)
        there._keys = self._keys.to(device) if self._bits is None else self._keys  # read where there are no bits
        return there

    @property
    def nbytes(self) -> int:
        """Bytes of what :meth:`on` copies."""
        return self.counts.nbytes + (self._keys if self._bits is None else self._bits).nbytes

    def has(self, users: Tensor, items: Tensor) -> Tensor:
        """Whether the users have the items: bool, in the shape to which `users` and `items` broadcast."""
        if self._bits is not None:
            byte = self._bits[users * self.stride + (items >> 3)]
            return (byte & _bit(items)) != 0
        keys = users * self.num_items + items
        position = torch.searchsorted(self._keys, keys).clamp_(max=max(self._keys.numel() - 1, 0))
        return self._keys[position] == keys if self._keys.numel() else torch.zeros_like(keys, dtype=torch.bool)

    def unseen(self, user: int) -> Tensor:
        """The items that the user does not have, ascending: int64 (num_items - counts[user],)."""
        items = torch.arange(self.num_items, device=self.counts.device)
        return items[~self.has(torch.full_like(items, user), items)]

    def check_unseen(self, users: Tensor, num: int, remedy: str) -> None:
        """ValueError if one of `users` lacks fewer than `num` items; {lacks} and {owner} in `remedy` are filled in."""
        if users.numel() == 0:
            return
        lacking = self.num_items - self.counts[users]
        least = int(lacking.argmin())
        lacks, row = int(lacking[least]), int(users[least])
        if lacks >= num:
            return
        name = f"row {row}" if self.user_ids is None else f"{self.user_ids.id(row)!r}"
        raise ValueError(
            f"{self.owner} {name} lacks only {lacks} of {self.num_items} items: expected at least {num} to draw "
            f"negatives from; {(remedy if lacks else LEAVE_OUT).format(lacks=lacks, owner=self.owner)}"
        )


def _bit(items: Tensor) -> Tensor:
    return torch.ones((), dtype=torch.uint8, device=items.device) << (items & 7).to(torch.uint8)


def sample_negatives(users: Tensor, seen: SeenItems, num: int, generator: torch.Generator) -> Tensor:
    """`num` items for each of `users` (n,), uniform among those that the user does not have: int64 (n, num).

    An item may be drawn several times. ValueError if a user has every item. Users may be on any device, with `seen`;
    the generator is one of the CPU, so that a seed draws the same items on each.
    """
    seen.check_unseen(users, 1, LEAVE_OUT)
    owner = users.repeat_interleave(num)
    drawn = torch.randint(seen.num_items, (owner.numel(),), generator=generator).to(users.device)
    wrong = seen.has(owner, drawn).nonzero().squeeze(1)
    for _ in range(32):
        if wrong.numel() == 0:
            break
        again = torch.randint(seen.num_items, (wrong.numel(),), generator=generator).to(users.device)
        drawn[wrong] = again
        wrong = wrong[seen.has(owner[wrong], again)]
    # The users of the remaining draws have nearly all items: choose from the list of those that they lack.
    for user in sorted(set(owner[wrong].tolist())):
        positions = wrong[owner[wrong] == user]
        unseen = seen.unseen(user)
        chosen = torch.randint(unseen.numel(), (positions.numel(),), generator=generator).to(users.device)
        drawn[positions] = unseen[chosen]
    return drawn.view(users.numel(), num)


def evaluation_negatives(users: Tensor, seen: SeenItems, num: int, seed: int, option: str = "eval_negatives") -> Tensor:
    """`num` different items for each of `users` (n,) that the user has nowhere: int64 (n, num), ascending.

    The seed determines them. ValueError if a user lacks fewer than `num` items; it names the setting `option`.
    """
    none = ", or 0: no sampled metrics" if option == "eval_negatives" else ""
    fewer = f"ask for fewer negatives (--set {option}={{lacks}}{none})"
    seen.check_unseen(users, num, f"{fewer} or leave the {{owner}} out")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(seen.num_items, (users.numel(), num), generator=generator)
    owner = users[:, None]
    pending = torch.arange(users.numel())
    for _ in range(64):
        rows = drawn[pending]
        wrong = torch.empty(rows.shape, dtype=torch.bool)
        # In pieces, since each step takes several times the memory of the rows.
        for some, bad, of in zip(*(torch.split(each, SORTED_ROWS) for each in (rows, wrong, pending)), strict=True):
            some.copy_(some.sort(dim=1).values)
            bad.copy_(seen.has(owner[of], some))
            bad[:, 1:] |= some[:, 1:] == some[:, :-1]
        again = torch.randint(seen.num_items, (int(wrong.sum()),), generator=generator)
        rows[wrong] = again
        drawn[pending] = rows
        pending = pending[wrong.any(dim=1)]
        if pending.numel() == 0:
            return drawn
    for row in pending.tolist():
        unseen = seen.unseen(int(users[row]))
        chosen = torch.randperm(unseen.numel(), generator=generator)[:num]
        drawn[row] = unseen[chosen].sort().values
    return drawn
