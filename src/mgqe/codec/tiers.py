"""Tiers: which ids are frequent and get more capacity (MGQE, arXiv 2002.08530, section 2.2).

Ids are sorted by training count, ties by id, and cut into m groups; tier 0 holds the most frequent ids.
A frozen table has to find an id's tier and its rank inside the tier. When ids are already in frequency order
the tiers are ranges and this costs nothing; otherwise it holds a tier map (:mod:`mgqe.codec.tier_map`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.ids import check_dense, check_ids, no_values
from mgqe.checks.inference import as_normal
from mgqe.checks.scalars import as_floats, as_int, as_ints, optional_int
from mgqe.ops.layout.packed_format import MAX_TIERS


@dataclass(frozen=True, eq=False)
class Tiers:
    """A partition of the ids 0 .. num_embeddings - 1 into tiers; tier 0 is the most frequent.

    Attributes:
        sizes: ids in each tier. Empty tiers are allowed: a vocabulary may have fewer ids than tiers.
        tier_of: uint8 (num_embeddings,), each id's tier, on the CPU; None when every tier is a contiguous
            range of ids in tier order (an explicit assignment that happens to be so is replaced by None).

    Raises:
        ValueError: no tier, more than 256, a negative size, or ``tier_of`` disagrees with ``sizes``.
        TypeError: ``tier_of`` is not a uint8 tensor.
    """

    sizes: tuple[int, ...]
    tier_of: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = as_ints("sizes", self.sizes)
        object.__setattr__(self, "sizes", sizes)
        if not 1 <= len(sizes) <= MAX_TIERS:
            raise ValueError(f"expected 1 to {MAX_TIERS} tiers, got {len(sizes)} sizes")
        if min(sizes) < 0:
            raise ValueError(f"tier sizes must not be negative, got {sizes}")
        if self.tier_of is None:
            return
        if not isinstance(self.tier_of, Tensor) or self.tier_of.dtype != torch.uint8:
            raise TypeError("tier_of must be a uint8 tensor: use Tiers.from_assignment for other integers")
        if tuple(self.tier_of.shape) != (sum(sizes),):
            raise ValueError(f"tier_of has shape {tuple(self.tier_of.shape)}, but the sizes sum to {sum(sizes)}")
        tier_of = as_normal(self.tier_of.detach().cpu().contiguous())
        counted = torch.bincount(tier_of, minlength=len(sizes)).tolist()
        if tuple(counted) != sizes:
            raise ValueError(f"tier_of puts {tuple(counted)} ids into the tiers, but sizes say {sizes}")
        contiguous = bool((tier_of[1:] >= tier_of[:-1]).all())
        object.__setattr__(self, "tier_of", None if contiguous else tier_of)

    @property
    def num_embeddings(self) -> int:
        """N, the ids of all tiers."""
        return sum(self.sizes)

    @property
    def num_tiers(self) -> int:
        """m, the number of tiers, empty ones included."""
        return len(self.sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """Cumulative sizes (m + 1): in frequency order tier g holds ids starts[g] to starts[g + 1] - 1."""
        return (0, *accumulate(self.sizes))

    @classmethod
    def from_counts(
        cls,
        counts: Tensor | np.ndarray | Sequence[float],
        fractions: Sequence[float] = (0.1, 0.9),
        boundaries: Sequence[int] | None = None,
        num_embeddings: int | None = None,
    ) -> Tiers:
        """Tiers from training counts: ids sorted by (-count, id), so ties break the same way on every machine.

        Args:
            counts: (num_embeddings,) how often each id occurs in training; integers, or finite floats >= 0.
            fractions: share of the ids in each tier, summing to 1; :meth:`from_fractions` has the rounding.
            boundaries: used instead of ``fractions``: increasing cumulative tier ends
                (n_0, n_0 + n_1, ...); the last end, the number of ids, may be left out.
            num_embeddings: the length that ``counts`` must have.

        Raises:
            ValueError: counts of the wrong shape or length, negative, not finite or all zero; bad fractions
                or boundaries.
            TypeError: counts are not numbers.
        """
        values = check_counts(counts, num_embeddings)
        n = values.numel()
        sizes = _sizes_from_fractions(n, fractions) if boundaries is None else _sizes_from_boundaries(n, boundaries)
        order = torch.sort(values, descending=True, stable=True).indices
        tier_of = torch.empty(n, dtype=torch.uint8, device="cpu")
        for g, ids in enumerate(torch.split(order, list(sizes))):
            tier_of[ids] = g
        return cls(sizes, tier_of)

    @classmethod
    def from_sizes(cls, sizes: Sequence[int]) -> Tiers:
        """Tiers of these sizes over ids in frequency order: tier 0 is ids 0 .. sizes[0] - 1, and so on."""
        return cls(as_ints("sizes", sizes))

    @classmethod
    def from_fractions(cls, num_embeddings: int, fractions: Sequence[float] = (0.1, 0.9)) -> Tiers:
        """Tiers over ids in frequency order, each a share of ``num_embeddings``.

        Cumulative ends are rounded half up; every tier gets at least one id where there are enough ids, and
        with fewer ids than tiers the first tiers get one each.
        """
        return cls(_sizes_from_fractions(num_embeddings, fractions))

    @classmethod
    def from_assignment(cls, tier_of: Tensor | np.ndarray | Sequence[int], num_tiers: int | None = None) -> Tiers:
        """Tiers from the tier of each id.

        Args:
            tier_of: (num_embeddings,) integers in [0, num_tiers).
            num_tiers: default: the largest tier named, plus one.
        """
        assigned = torch.as_tensor(tier_of)
        check_dense(assigned, "tier_of")
        if assigned.is_meta:
            raise no_values("tier_of")
        if assigned.ndim != 1 or (assigned.numel() and (assigned.is_floating_point() or assigned.is_complex())):
            raise ValueError(
                f"tier_of must be one integer per id, shape (num_embeddings,); got {assigned.dtype} "
                f"of shape {tuple(assigned.shape)}"
            )
        num_tiers = optional_int("num_tiers", num_tiers)
        assigned = assigned.to(torch.int64)
        low, high = (int(assigned.min()), int(assigned.max())) if assigned.numel() else (0, 0)
        m = high + 1 if num_tiers is None else num_tiers
        if low < 0 or high >= m or not 1 <= m <= MAX_TIERS:
            raise ValueError(f"tiers must be in 0 .. {min(m, MAX_TIERS) - 1}, but tier_of holds {low} .. {high}")
        sizes = torch.bincount(assigned, minlength=m).tolist()
        return cls(tuple(sizes), assigned.to(torch.uint8))

    def of(self, ids: Tensor) -> Tensor:
        """Each id's tier: ids (...) of any integer dtype -> uint8 (...), on the ids' device.

        Raises IndexError for ids out of range, TypeError for ids that are not integers.
        """
        rows = check_ids(ids, self.num_embeddings)
        if self.tier_of is not None:
            return self.tier_of.to(rows.device)[rows]
        ends = torch.tensor(self.starts[1:-1], dtype=torch.int64, device=rows.device)
        return torch.bucketize(rows, ends, right=True).to(torch.uint8)

    def members(self, tier: int) -> Tensor:
        """The ids of one tier in ascending order, int64 (sizes[tier],)."""
        no_ids = torch.empty(0, dtype=torch.int64, device="cpu")
        return next(self.member_chunks(tier, max(1, self.num_embeddings)), no_ids)

    def member_chunks(self, tier: int, size: int) -> Iterator[Tensor]:
        """:meth:`members`, at most ``size`` ids at a time, so that not all of them are in memory at once."""
        tier, size = as_int("tier", tier), as_int("size", size, 1)
        if not 0 <= tier < self.num_tiers:
            raise IndexError(f"tier {tier} does not exist: there are {self.num_tiers}")
        if self.tier_of is None:
            first, end = self.starts[tier], self.starts[tier + 1]
        else:
            first, end = 0, self.num_embeddings
        for start in range(first, end, size):
            stop = min(start + size, end)
            if self.tier_of is None:
                yield torch.arange(start, stop, device="cpu")
            else:
                yield torch.nonzero(self.tier_of[start:stop] == tier).reshape(-1).add_(start)

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Each id's tier, uint8 (...), and its rank among the ascending ids of that tier, int64 (...)."""
        tier = self.of(ids)
        rows = ids.to(torch.int64)
        if self.tier_of is None:
            return tier, rows - torch.tensor(self.starts, device=rows.device)[tier.to(torch.int64)]
        ranks = torch.empty(self.num_embeddings, dtype=torch.int64, device="cpu")
        for g in range(self.num_tiers):
            ranks[self.tier_of == g] = torch.arange(self.sizes[g], device="cpu")
        return tier, ranks.to(rows.device)[rows]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tiers):
            return NotImplemented
        if self.sizes != other.sizes:
            return False
        if self.tier_of is None or other.tier_of is None:
            return self.tier_of is other.tier_of
        return torch.equal(self.tier_of, other.tier_of)

    def __hash__(self) -> int:
        return hash((self.sizes, self.tier_of is None))

    def __repr__(self) -> str:
        order = "ids in frequency order" if self.tier_of is None else "ids in any order"
        return f"Tiers(sizes={self.sizes}, {order})"


def check_counts(counts: Tensor | np.ndarray | Sequence[float], num_embeddings: int | None) -> Tensor:
    if isinstance(counts, Tensor):
        check_dense(counts, "counts")
        if counts.is_meta:
            raise no_values("counts")
    try:
        values = counts.detach().cpu() if isinstance(counts, Tensor) else torch.from_numpy(np.array(counts))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"counts must be one number per id, got {type(counts).__name__}") from error
    if values.dtype == torch.bool or values.is_complex():
        raise TypeError(f"counts must be integers or floats, got {values.dtype}")
    if values.ndim != 1:
        raise ValueError(f"counts must have shape (num_embeddings,), got {tuple(values.shape)}")
    num_embeddings = optional_int("num_embeddings", num_embeddings)
    if num_embeddings is not None and values.numel() != num_embeddings:
        raise ValueError(
            f"counts has {values.numel()} entries, but num_embeddings is {num_embeddings}: "
            "give one count per id, zero for ids that never occur"
        )
    # uint64 and half floats cannot all be sorted; both fit these without loss that matters for an order.
    values = values.to(torch.float64 if values.is_floating_point() else torch.int64)
    if values.numel() == 0:
        return values
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise ValueError("counts must be finite, got NaN or infinity")
    if bool((values < 0).any()):
        first = int(torch.nonzero(values < 0)[0])
        raise ValueError(f"counts must not be negative, but counts[{first}] is {values[first].item()}")
    if not bool((values > 0).any()):
        raise ValueError("counts are all zero, so there is no order of frequency: count ids in the training data")
    return values


def _sizes_from_fractions(num_embeddings: int, fractions: Sequence[float]) -> tuple[int, ...]:
    shares, num_embeddings = as_floats("fractions", fractions), as_int("num_embeddings", num_embeddings)
    if num_embeddings < 0:
        raise ValueError(f"num_embeddings must not be negative, got {num_embeddings}")
    if not 1 <= len(shares) <= MAX_TIERS:
        raise ValueError(f"expected 1 to {MAX_TIERS} fractions, got {len(shares)}")
    if not all(math.isfinite(f) and f > 0 for f in shares) or abs(math.fsum(shares) - 1) > 1e-6:
        raise ValueError(f"fractions must be positive and sum to 1, got {shares} with sum {math.fsum(shares):g}")
    m, end, sizes = len(shares), 0, []
    for g in range(1, m + 1):
        ideal = math.floor(num_embeddings * math.fsum(shares[:g]) + 0.5)
        # One id at least for this tier and for each one after it, as far as the ids go.
        stop = min(max(ideal, end + 1), max(num_embeddings - (m - g), end + 1), num_embeddings)
        stop = num_embeddings if g == m else stop
        sizes.append(stop - end)
        end = stop
    return tuple(sizes)


def _sizes_from_boundaries(num_embeddings: int, boundaries: Sequence[int]) -> tuple[int, ...]:
    ends = list(as_ints("boundaries", boundaries))
    if not ends or ends[-1] != num_embeddings:
        ends.append(num_embeddings)
    sizes = tuple(stop - start for start, stop in zip([0, *ends], ends, strict=False))
    if any(n <= 0 for n in sizes) and not (num_embeddings == 0 and len(sizes) == 1):
        raise ValueError(f"boundaries must increase and lie in 1 .. {num_embeddings} (ids), got {tuple(boundaries)}")
    return sizes
