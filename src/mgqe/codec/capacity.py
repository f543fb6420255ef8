"""Tier shapes and capacity: how many subspaces and centroids each tier gets, and which codebook it reads.

The paper varies a tier's capacity in two ways (MGQE, arXiv 2002.08530, section 2.2): fewer centroids for the
tail (``capacity="centroids"``, the tail chooses among the first K_g of the same K_1 centroids), or fewer
subspaces (``capacity="subspaces"``). ``capacity="both"``, which the paper does not have, varies the two together: what
serves a skewed vocabulary best differs by more bits between the tiers than either can alone. With a shared codebook
a tier of D_g < D_1 subspaces picks one index for D_1 / D_g neighbouring fine subspaces at once, so that the model
holds no more centroids than DPQ either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mgqe.checks.scalars import as_int, as_ints, is_sequence
from mgqe.codec.packing import Bits, bits_for, row_bytes
from mgqe.ops.layout.packed_format import LEVEL_BITS, MAX_CENTROIDS
from mgqe.ops.layout.pieces import Piece, check_bits, codebook_sizes, pieces

BY_COLUMNS = "int8_columns"  # a matrix of int8 with a scale per column, for coordinates that are int8, too
MIN_CENTROIDS = 2
DEFAULT_HEAD_CENTROIDS = 256
DEFAULT_TAIL_CENTROIDS = 64
CAPACITIES = ("centroids", "subspaces", "both")


@dataclass(frozen=True)
class TierShape:
    """One tier in numbers.

    Attributes:
        ids: n_g, how many ids it has.
        num_subspaces: D_g.
        num_centroids: K_g: it chooses among the first K_g of its codebook.
        codebook: the number of the codebook that it reads.
        code_bits: of a mixed table: the bits of each code, 0 to 16. With b bits it chooses among the first 2^b
            centroids of the subspace; K_g is the largest of these. Empty where all codes have as many bits.
    """

    ids: int
    num_subspaces: int
    num_centroids: int
    codebook: int = 0
    code_bits: tuple[int, ...] = ()

    @classmethod
    def mixed(cls, ids: int, code_bits: Sequence[int], codebook: int = 0) -> TierShape:
        """A tier of a mixed table."""
        return cls(ids, len(code_bits), 1 << max(code_bits), codebook, tuple(code_bits))

    @property
    def bits(self) -> int:
        """Bits of a code; of the widest one in a mixed table."""
        return bits_for(self.num_centroids)

    @property
    def packing(self) -> Bits:
        """The bits of codes as :func:`mgqe.codec.packing.pack` takes them."""
        return self.code_bits or self.bits

    @property
    def row_bytes(self) -> int:
        """Bytes of an id's packed codes."""
        return row_bytes(self.num_subspaces, self.packing)

    def describe(self) -> str:
        """The tier in a few words, for reports."""
        if self.code_bits:
            return f"{self.ids:,} ids x {sum(self.code_bits)} bits"
        return f"{self.ids:,} ids x {self.num_subspaces} of {self.num_centroids}"


def tier_shapes(
    sizes: Sequence[int], num_subspaces: Sequence[int], num_centroids: Sequence[int], codebook_of: Sequence[int]
) -> tuple[TierShape, ...]:
    """Tier shapes from lists with one entry per tier; raises ValueError where their lengths differ."""
    if len({len(sizes), len(num_subspaces), len(num_centroids), len(codebook_of)}) > 1:
        raise ValueError(
            f"expected one entry per tier, got sizes {tuple(sizes)}, num_subspaces {tuple(num_subspaces)}, "
            f"num_centroids {tuple(num_centroids)} and codebooks {tuple(codebook_of)}"
        )
    return tuple(map(TierShape, sizes, num_subspaces, num_centroids, codebook_of))


class OfTiers:
    """Something that has tier shapes, with the numbers of all tiers as tuples."""

    embedding_dim: int
    tiers: tuple[TierShape, ...]
    widths: tuple[int, ...]
    matrix_dtype: str | None

    @property
    def num_tiers(self) -> int:
        """m."""
        return len(self.tiers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The ids of each tier."""
        return tuple(tier.ids for tier in self.tiers)

    @property
    def num_subspaces(self) -> tuple[int, ...]:
        """D_g of each tier."""
        return tuple(tier.num_subspaces for tier in self.tiers)

    @property
    def num_centroids(self) -> tuple[int, ...]:
        """K_g of each tier."""
        return tuple(tier.num_centroids for tier in self.tiers)

    @property
    def codebook_of(self) -> tuple[int, ...]:
        """The codebook of each tier."""
        return tuple(tier.codebook for tier in self.tiers)

    @property
    def num_coordinates(self) -> int:
        """L, the numbers that a row's codes decode to; d unless there is a matrix."""
        return sum(self.widths) or self.embedding_dim

    @property
    def has_levels(self) -> bool:
        """Whether all subspaces are one coordinate wide, and coordinates with codes of as many bits share centroids.

        In units of the coordinates; layers with such tables do not train them, so that they stay shared.
        """
        narrow = set(self.widths) == {1} and all(max(tier.code_bits) <= LEVEL_BITS for tier in self.tiers)
        return narrow and self.matrix_dtype == BY_COLUMNS and len(set(self.codebook_of)) == self.num_tiers

    def pieces(self, tier: int) -> tuple[Piece, ...]:
        """Of a mixed table: where the pieces of a tier's rows lie, in its packed codes and in its flat codebook."""
        shape = self.tiers[tier]
        return pieces(self.widths, shape.code_bits, centroids_per_subspace(self.tiers, shape.codebook))

    def pieces_of_codebook(self, codebook: int) -> tuple[Piece, ...]:
        """Of a mixed table: where the subspaces of a flat codebook lie; bits are those of its first tier."""
        return self.pieces(self.codebook_of.index(codebook))

    def describe(self) -> str:
        """All tiers in a few words, for reports."""
        return "; ".join(tier.describe() for tier in self.tiers)


@dataclass(frozen=True)
class Capacity(OfTiers):
    """What each tier may use.

    Attributes:
        embedding_dim: d.
        tiers: the shape of each tier.
        share_codebook: all tiers choose from codebook 0; otherwise tier g has codebook g.
        share_subspaces: a codebook holds one set of centroids for all of its subspaces.
        widths: of a mixed table: the coordinates of each subspace.
        matrix_dtype: of a mixed table with a mean and a matrix: "float32", "float16" or "int8"; else None.
    """

    embedding_dim: int
    tiers: tuple[TierShape, ...]
    share_codebook: bool = True
    share_subspaces: bool = False
    widths: tuple[int, ...] = ()
    matrix_dtype: str | None = None

    @classmethod
    def of(
        cls,
        embedding_dim: int,
        sizes: Sequence[int],
        num_subspaces: Sequence[int],
        num_centroids: Sequence[int],
        share_codebook: bool = True,
        share_subspaces: bool = False,
    ) -> Capacity:
        """From the ids, D_g and K_g of each tier; raises ValueError where they do not fit together."""
        codebook_of = [0 if share_codebook else g for g in range(len(sizes))]
        tiers = tier_shapes(sizes, num_subspaces, num_centroids, codebook_of)
        return cls(embedding_dim, tiers, share_codebook, share_subspaces)

    def __post_init__(self) -> None:
        if self.widths:
            return self._check_mixed()
        for tier in self.tiers:
            if tier.num_subspaces < 1 or self.embedding_dim % tier.num_subspaces:
                raise ValueError(
                    f"embedding_dim={self.embedding_dim} is not divisible into num_subspaces={tier.num_subspaces}: "
                    f"choose one of {divisors(self.embedding_dim)}"
                )
            if not MIN_CENTROIDS <= (k := tier.num_centroids) <= MAX_CENTROIDS:
                raise ValueError(f"num_centroids must be from {MIN_CENTROIDS} to {MAX_CENTROIDS}, got {k}")
        if not self.share_codebook:
            return
        finest = max(self.num_subspaces)
        if any(finest % subspaces for subspaces in self.num_subspaces):
            raise ValueError(
                f"with share_codebook=True every tier's num_subspaces must divide the largest, "
                f"got {self.num_subspaces}: use powers of two, or share_codebook=False"
            )
        if self.share_subspaces and min(self.num_subspaces) != finest:
            raise ValueError(
                f"share_subspaces=True with share_codebook=True needs the same num_subspaces in every tier, "
                f"got {self.num_subspaces}: a coarser tier would repeat one centroid. Use share_codebook=False"
            )

    def _check_mixed(self) -> None:
        if any(len(tier.code_bits) != len(self.widths) for tier in self.tiers):
            raise ValueError(f"every tier must have bits for each of {len(self.widths)} subspaces")
        for tier in self.tiers:
            check_bits(tier.code_bits)
        coordinates = sum(self.widths)
        if coordinates > self.embedding_dim or (self.matrix_dtype is None and coordinates < self.embedding_dim):
            raise ValueError(
                f"widths {self.widths} have {coordinates} coordinates, but embedding_dim is {self.embedding_dim}: at "
                "most as many, and as many without a matrix"
            )

    @property
    def codebook_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(subspaces or 1, centroids, dimensions) of each codebook; flat ones in a mixed table."""
        if self.widths:
            return tuple((size,) for size in codebook_lengths(self.widths, self.tiers))
        if self.share_codebook:
            sizes = [(max(self.num_subspaces), max(self.num_centroids))]
        else:
            sizes = [(tier.num_subspaces, tier.num_centroids) for tier in self.tiers]
        return tuple(
            (1 if self.share_subspaces else subspaces, centroids, self.embedding_dim // subspaces)
            for subspaces, centroids in sizes
        )


def codebook_lengths(widths: Sequence[int], tiers: Sequence[TierShape]) -> tuple[int, ...]:
    """How many numbers each flat codebook of a mixed table holds."""
    counts = [centroids_per_subspace(tiers, c) for c in range(1 + max(tier.codebook for tier in tiers))]
    return tuple(sum(w * k for w, k in zip(widths, of_book, strict=True)) for of_book in counts)


def centroids_per_subspace(tiers: Sequence[TierShape], codebook: int) -> tuple[int, ...]:
    """Of a mixed table: how many centroids a codebook holds for each subspace."""
    return codebook_sizes([tier.code_bits for tier in tiers if tier.codebook == codebook])


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, in ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def default_num_subspaces(embedding_dim: int) -> int:
    """Two dimensions per subspace where d is even (the default that measured best, docs/method.md), else d."""
    return embedding_dim // 2 if embedding_dim % 2 == 0 else embedding_dim


def resolve_capacity(
    embedding_dim: int,
    tier_sizes: Sequence[int],
    *,
    num_subspaces: int | Sequence[int] | None,
    num_centroids: int | Sequence[int] | None,
    capacity: str,
    share_codebook: bool,
    share_subspaces: bool,
) -> Capacity:
    """One checked :class:`Capacity` from the user's arguments.

    A tier cannot use more centroids than it has distinct vectors (its ids, times the subspaces where they share a
    codebook): a larger ``num_centroids`` is an error, and the default is cut to that number.

    Raises:
        ValueError: sizes, subspaces, centroids and ``capacity`` do not fit together.
        TypeError: something other than whole numbers.
    """
    tiers = len(tier_sizes)
    if capacity not in CAPACITIES:
        raise ValueError(f'capacity must be "centroids", "subspaces" or "both", got {capacity!r}')
    embedding_dim = as_int("embedding_dim", embedding_dim)
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")

    if num_subspaces is None:
        finest = default_num_subspaces(embedding_dim)
        if capacity != "centroids" and tiers > 1 and finest % 2 == 0:
            subspaces = (finest,) + (finest // 2,) * (tiers - 1)
        else:
            subspaces = (finest,) * tiers
    else:
        subspaces = per_tier(num_subspaces, tiers, "num_subspaces")
    if capacity == "centroids" and len(set(subspaces)) > 1:
        raise ValueError(
            f'capacity="centroids" varies the centroids, so num_subspaces must be one number, got '
            f'{subspaces}: use capacity="subspaces" or "both"'
        )

    usable = [max(MIN_CENTROIDS, n * (d if share_subspaces else 1)) for n, d in zip(tier_sizes, subspaces, strict=True)]
    if num_centroids is None:
        wanted = [DEFAULT_HEAD_CENTROIDS] + [
            DEFAULT_HEAD_CENTROIDS if capacity == "subspaces" else DEFAULT_TAIL_CENTROIDS
        ] * (tiers - 1)
        centroids = tuple(min(k, 1 << (n.bit_length() - 1)) for k, n in zip(wanted, usable, strict=True))
        if capacity == "subspaces":
            centroids = (min(centroids),) * tiers
    else:
        centroids = per_tier(num_centroids, tiers, "num_centroids")
        for tier, (k, n, size) in enumerate(zip(centroids, usable, tier_sizes, strict=True)):
            if k > n and size > 0:
                owner = "the table" if tiers == 1 else f"tier {tier}"
                larger = "" if tiers == 1 else ", or make the tier larger (counts=, fractions=, tiers=)"
                raise ValueError(
                    f"{owner} has {size} ids and cannot use num_centroids={k}: give it at most {n}{larger}"
                )
    if capacity == "subspaces" and len(set(centroids)) > 1:
        raise ValueError(
            f'capacity="subspaces" varies the subspaces, so num_centroids must be one number, got '
            f'{centroids}: use capacity="centroids" or "both"'
        )
    return Capacity.of(embedding_dim, tier_sizes, subspaces, centroids, share_codebook, share_subspaces)


def per_tier(value: int | Sequence[int], tiers: int, name: str) -> tuple[int, ...]:
    """A number, or one number per tier -> one number per tier."""
    try:
        values = as_ints(name, value) if is_sequence(value) else (as_int(name, value),) * tiers
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, or one per tier, got {value!r}") from error
    if len(values) != tiers:
        there = "is 1 tier" if tiers == 1 else f"are {tiers} tiers"
        raise ValueError(f"{name} has {len(values)} entries, but there {there}: give one per tier")
    return values
