"""How a compact table is laid out: its plain numbers, the parts that must fit them, and checks of both.

docs/format.md describes the same things for readers in other languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mgqe.checks.scalars import as_ints, optional_int
from mgqe.codec.equations import int8_scales
from mgqe.codec.packing import bits_for, pack, spare_bits_are_zero
from mgqe.codec.tier_map import MAX_MAPPED_IDS, TierMap, block_counts, build_tier_map, ranks_of, unpack_bits
from mgqe.codec.tiers import Tiers
from mgqe.files.reader import MAX_DIM, MAX_ROWS, Config, Reader
from mgqe.ops import max_code
from mgqe.ops.packed_format import BLOCK_BITS, MAX_CENTROIDS, MAX_TIERS, WORDS_PER_BLOCK, level_lengths

KIND = "compact"  # the name under which files record such a table
CENTROID_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class CompactConfig:
    """The plain numbers of a :class:`CompactTable`; one entry a tier where it says so.

    Attributes:
        num_embeddings: N, rows.
        embedding_dim: d.
        sizes: ids of each tier, summing to N.
        num_subspaces: D_g of each tier.
        num_centroids: K_g of each tier: it chooses among the first K_g of its codebook.
        codebook_of: the codebook of each tier.
        centroid_dtype: "float32", "float16" or "int8".
        padding_idx: the id that looks up as zeros, or None.
        order: the tiers in the order in which the tier map splits them off; None for ids in frequency order.
    """

    num_embeddings: int
    embedding_dim: int
    sizes: tuple[int, ...]
    num_subspaces: tuple[int, ...]
    num_centroids: tuple[int, ...]
    codebook_of: tuple[int, ...]
    centroid_dtype: str
    padding_idx: int | None
    order: tuple[int, ...] | None

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of a code in each tier."""
        return tuple(bits_for(k) for k in self.num_centroids)

    @classmethod
    def read(cls, reader: Reader) -> CompactConfig:
        """From a table's configuration; raises ValueError naming the entry that is wrong."""
        n = reader.integer("num_embeddings", 0, MAX_ROWS)
        d = reader.integer("embedding_dim", 1, MAX_DIM)
        sizes = reader.integers("sizes", 0, n)
        m = len(sizes)
        if not 1 <= m <= MAX_TIERS or sum(sizes) != n:
            raise ValueError(
                f"config entry 'sizes' must be 1 to {MAX_TIERS} tier sizes summing to num_embeddings={n}, "
                f"got {m} summing to {sum(sizes)}"
            )
        num_subspaces = reader.integers("num_subspaces", 1, d, length=m)
        num_centroids = reader.integers("num_centroids", 1, MAX_CENTROIDS, length=m)
        codebook_of = reader.integers("codebook_of", 0, m - 1, length=m)
        if set(codebook_of) != set(range(max(codebook_of) + 1)):
            raise ValueError(f"config entry 'codebook_of' leaves out a codebook: {list(codebook_of)}")
        dtype = reader.choice("centroid_dtype", CENTROID_DTYPES.keys())
        padding_idx = reader.optional_integer("padding_idx", 0, n - 1)
        order = reader.value("order")
        if order is not None and (not isinstance(order, list) or not _is_permutation(order, m)):
            raise ValueError(f"config entry 'order' must be null or the tiers 0 .. {m - 1} in some order")
        if order is not None and n > MAX_MAPPED_IDS:
            raise ValueError(f"a tier map holds at most {MAX_MAPPED_IDS} ids, got num_embeddings={n}")
        return cls(
            n,
            d,
            sizes,
            num_subspaces,
            num_centroids,
            codebook_of,
            dtype,
            padding_idx,
            None if order is None else tuple(order),
        )

    def to_json(self) -> Config:
        """Entries that JSON can write; :meth:`read` is the inverse."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def _is_permutation(order: Sequence[object], m: int) -> bool:
    return (
        len(order) == m
        and all(isinstance(g, int) and not isinstance(g, bool) for g in order)
        and set(order) == set(range(m))
    )


def lay_out(
    tiers: Tiers,
    codes: Sequence[Tensor],
    codebooks: Sequence[Tensor],
    codebook_of: Sequence[int],
    num_centroids: Sequence[int],
    padding_idx: int | None,
    centroid_dtype: str,
) -> tuple[dict[str, Tensor], Config]:
    """A table's tensors and configuration from unpacked codes; see :meth:`CompactTable.from_codes`."""
    m, num_centroids = tiers.num_tiers, as_ints("num_centroids", num_centroids)
    for name, given in (("codes", codes), ("codebook_of", codebook_of), ("num_centroids", num_centroids)):
        if len(given) != m:
            raise ValueError(f"{name} must have one entry a tier, {m}, got {len(given)}")
    packed = []
    for g, tier_codes in enumerate(codes):
        if tier_codes.ndim != 2 or tier_codes.shape[0] != tiers.sizes[g] or tier_codes.shape[1] < 1:
            raise ValueError(
                f"codes of tier {g} must have shape ({tiers.sizes[g]}, num_subspaces), got {tuple(tier_codes.shape)}"
            )
        if tier_codes.numel() and int(tier_codes.max()) >= num_centroids[g]:
            raise ValueError(f"tier {g} has num_centroids={num_centroids[g]}, but a code {int(tier_codes.max())}")
        packed.append(pack(tier_codes.detach().cpu(), bits_for(num_centroids[g])))
    subspaces = [c.shape[1] for c in codes]
    tensors, config = lay_out_frame(
        tiers, codebooks, codebook_of, subspaces, num_centroids, padding_idx, centroid_dtype
    )
    return {f"codes.{g}": c for g, c in enumerate(packed)} | tensors, config


def lay_out_frame(
    tiers: Tiers,
    codebooks: Sequence[Tensor],
    codebook_of: Sequence[int],
    num_subspaces: Sequence[int],
    num_centroids: Sequence[int],
    padding_idx: int | None,
    centroid_dtype: str,
) -> tuple[dict[str, Tensor], Config]:
    """The same without the codes: centroids, scales and tier map, and the configuration."""
    if centroid_dtype not in CENTROID_DTYPES:
        raise ValueError(f"centroid_dtype must be one of {sorted(CENTROID_DTYPES)}, got {centroid_dtype!r}")
    if not codebooks or any(book.ndim != 3 for book in codebooks):
        raise ValueError("codebooks must be tensors of shape (subspaces or 1, centroids, dimensions)")
    codebook_of = as_ints("codebook_of", codebook_of)
    if not all(0 <= c < len(codebooks) for c in codebook_of):
        raise ValueError(f"codebook_of must name codebooks 0 .. {len(codebooks) - 1}, got {codebook_of}")
    for number, book in enumerate(codebooks):
        if not bool(torch.isfinite(book).all()):
            raise ValueError(
                f"codebook {number} holds NaN or infinity: if it was trained, lower the learning rate or go back to an "
                "earlier checkpoint"
            )
    stored = [store_centroids(book, centroid_dtype) for book in codebooks]
    tier_map = None if tiers.tier_of is None else build_tier_map(tiers)
    first = codebooks[codebook_of[0]]
    shared = first.shape[0] == 1
    config = CompactConfig(
        num_embeddings=tiers.num_embeddings,
        embedding_dim=int(first.shape[2] * (num_subspaces[0] if shared else first.shape[0])),
        sizes=tiers.sizes,
        num_subspaces=as_ints("num_subspaces", num_subspaces),
        num_centroids=as_ints("num_centroids", num_centroids),
        codebook_of=codebook_of,
        centroid_dtype=centroid_dtype,
        padding_idx=optional_int("padding_idx", padding_idx),
        order=tier_map.order if tier_map else None,
    )
    tensors: dict[str, Tensor] = {}
    for c, (centroids, scales) in enumerate(stored):
        tensors[f"centroids.{c}"] = centroids
        if centroid_dtype == "int8":
            tensors[f"scales.{c}"] = scales
    tensors.update(map_tensors(tier_map))
    return tensors, config.to_json()


def store_centroids(codebook: Tensor, centroid_dtype: str) -> tuple[Tensor, Tensor]:
    """A float codebook (Dc, Kc, sc) as it is kept, and its scales (Dc,) or an empty tensor."""
    values = codebook.detach().cpu().to(torch.float32).clone(memory_format=torch.contiguous_format)
    none = torch.empty(0, dtype=torch.float32, device="cpu")
    if centroid_dtype == "float32":
        return values, none
    if centroid_dtype == "float16":
        halves = values.to(torch.float16)
        if not bool(torch.isfinite(halves).all()):
            raise ValueError('centroids beyond 65504 do not fit float16: use centroid_dtype="int8" or "float32"')
        return halves, none
    scales = int8_scales(values)
    return (values / scales).round().clamp(-127, 127).to(torch.int8), scales.reshape(-1)


def check_codebook(tier: int, d: int, subspaces: int, num_centroids: int, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a codebook of ``shape`` (Dc, Kc, sc) can serve the tier."""
    pieces, held, width = shape
    separate = pieces * width == d and pieces % subspaces == 0
    shared = pieces == 1 and subspaces * width == d
    if not (separate or shared):
        raise ValueError(
            f"tier {tier} has {subspaces} subspaces of embedding_dim={d}, which a codebook of shape "
            f"(subspaces, centroids, dimensions) = {shape} cannot serve"
        )
    if num_centroids > held:
        raise ValueError(f"tier {tier} has num_centroids={num_centroids}, but its codebook holds {held}")


def check_codes(name: str, packed: Tensor, subspaces: int, num_centroids: int) -> None:
    """Raise ValueError unless packed rows (n, row_bytes) hold codes below ``num_centroids`` and no spare bits.

    Reads the rows only where they could hold anything else.
    """
    bits = bits_for(num_centroids)
    if not spare_bits_are_zero(packed, subspaces, bits):
        raise ValueError(f"tensor {name!r} has spare bits that are not zero")
    if num_centroids < 1 << bits:
        top = max_code(packed, subspaces, bits)
        if top >= num_centroids:
            raise ValueError(f"tensor {name!r} holds code {top}, but num_centroids is {num_centroids}")


def map_tensors(tier_map: TierMap | None) -> dict[str, Tensor]:
    """The named tensors of a tier map; none without one."""
    if tier_map is None:
        return {}
    tensors = {f"tier_map.bits.{level}": t for level, t in enumerate(tier_map.bits)}
    tensors.update({f"tier_map.ranks.{level}": t for level, t in enumerate(tier_map.ranks)})
    return tensors


def read_tier_map(reader: Reader, sizes: Sequence[int], order: tuple[int, ...]) -> TierMap:
    """The inverse of :func:`map_tensors`; shapes follow from the tier sizes."""
    bits, ranks = [], []
    for level, n in enumerate(level_lengths(sizes, order)):
        blocks = -(-n // BLOCK_BITS)
        bits.append(reader.tensor(f"tier_map.bits.{level}", torch.int64, (blocks * WORDS_PER_BLOCK,)))
        ranks.append(reader.tensor(f"tier_map.ranks.{level}", torch.int32, (blocks,)))
    return TierMap(order, tuple(bits), tuple(ranks))


def check_map(tier_map: TierMap, sizes: Sequence[int]) -> None:
    """Raise ValueError unless the map sends each id to one tier and exactly sizes[g] ids to tier g.

    A look-up trusts ranks: a wrong one would read past a tier's codes.
    """
    for level, n in enumerate(level_lengths(sizes, tier_map.order)):
        words, tier = tier_map.bits[level].cpu(), tier_map.order[level]
        blocks = block_counts(words)
        ones = int(blocks.sum())
        if ones != sizes[tier]:
            raise ValueError(f"tensor 'tier_map.bits.{level}' marks {ones} ids, but tier {tier} has {sizes[tier]}")
        last = n // 64
        if bool(unpack_bits(words[last:], (words.numel() - last) * 64)[n - 64 * last :].any()):
            raise ValueError(f"tensor 'tier_map.bits.{level}' marks ids beyond the {n} that are left")
        if not torch.equal(ranks_of(blocks), tier_map.ranks[level].cpu()):
            raise ValueError(f"tensor 'tier_map.ranks.{level}' disagrees with the bits it counts")
