"""Look-up in a frozen table: packed codes -> float32 rows, without ever unpacking the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mgqe.checks.ids import check_device
from mgqe.checks.scalars import as_int, as_ints
from mgqe.ops import reference
from mgqe.ops._checks import FALLBACK, all_below, id_error, id_tensor
from mgqe.ops._descriptor import Descriptor, TableParts
from mgqe.ops._eager import runs_now
from mgqe.ops._library import OUT_OF_RANGE, check, library


class PreparedLookup:
    """A table checked once and laid out for the kernels, so that a look-up of one id costs microseconds.

    Holds the tensors given. Copies and pickles like its parts; the layout is made again where it lands.

    Attributes:
        parts: the table.
        fallback: float32 ``(d,)``, the row of every id outside the table; None to refuse such ids.
    """

    def __init__(self, parts: TableParts, fallback: Tensor | None = None) -> None:
        """Raises TypeError or ValueError, naming the part, unless the parts fit together."""
        parts.check()
        self.parts = parts
        self.fallback = fallback
        self._num_embeddings = parts.num_embeddings
        self._native = None if library() is None or parts.device.type != "cpu" else Descriptor(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedLookup, (self.parts, self.fallback)

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers ``(...)`` -> float32 ``(..., d)``; errors as :func:`lookup`."""
        if runs_now(ids):
            return self._run(ids)
        if self.fallback is None:
            return self._traced(ids)
        if self._num_embeddings == 0:
            return self.fallback.expand(*ids.shape, -1).clone()
        known = self._known(ids)
        return torch.where(known.unsqueeze(-1), self._traced(torch.where(known, ids, 0)), self.fallback)

    def _known(self, ids: Tensor) -> Tensor:
        return (ids >= 0) & (ids < self._num_embeddings)

    def _traced(self, ids: Tensor) -> Tensor:
        rows: Tensor = torch.ops.mgqe.lookup(ids, *self.arguments())
        return rows

    def arguments(self) -> list[Any]:
        """The parts as operators take them. One by one: compilers do not see through ``vars``."""
        p = self.parts
        return [
            list(p.codes),
            list(p.centroids),
            list(p.scales),
            list(p.map_bits),
            list(p.map_ranks),
            list(p.order),
            list(p.sizes),
            list(p.bits),
            list(p.num_subspaces),
            list(p.codebook_of),
            p.embedding_dim,
            p.padding_idx,
        ]

    def _run(self, ids: Tensor) -> Tensor:
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or not ids.is_contiguous():
            ids = id_tensor(ids)
        check_device(ids, self.parts.device)
        native, lib = self._native, library()
        if native is None or lib is None:
            if not all_below(ids, self._num_embeddings):
                return self._run_unknown(ids)
            return reference.lookup(ids, self.parts)
        rows = torch.empty((*ids.shape, self.parts.embedding_dim), dtype=torch.float32, device=ids.device)
        status = lib.mgqe_lookup(native.address, ids.data_ptr(), ids.numel(), rows.data_ptr(), torch.get_num_threads())
        if status == OUT_OF_RANGE:
            return self._run_unknown(ids)
        check(status)
        return rows

    def _run_unknown(self, ids: Tensor) -> Tensor:
        if self.fallback is None:
            raise id_error(ids, self._num_embeddings, FALLBACK)
        rows = self.fallback.expand(*ids.shape, -1).clone()
        known = self._known(ids)
        rows[known] = self._run(ids[known])
        return rows


def lookup(
    ids: Tensor,
    codes: Sequence[Tensor],
    centroids: Sequence[Tensor],
    scales: Sequence[Tensor],
    map_bits: Sequence[Tensor],
    map_ranks: Sequence[Tensor],
    order: Sequence[int],
    sizes: Sequence[int],
    bits: Sequence[int],
    num_subspaces: Sequence[int],
    codebook_of: Sequence[int],
    embedding_dim: int,
    padding_idx: int,
) -> Tensor:
    """Rows of a frozen table. For many calls on one table make a :class:`PreparedLookup` instead.

    Args:
        ids: integers ``(...)``.
        codes: a tier: packed rows, uint8 ``(n_g, row_bytes)``, as :func:`mgqe.codec.packing.pack` makes them.
        centroids: a codebook: ``(Dc, Kc, sc)`` in the layout of :func:`mgqe.ops.gather`; float32, float16, or
            int8 with the float32 value ``int8 * scale[piece]``.
        scales: a codebook: ``(Dc,)`` float32 for int8, else an empty tensor.
        map_bits, map_ranks, order: the tier map (:class:`mgqe.codec.tiers.TierMap`); empty lists when ids are in
            frequency order, tier g then being the next ``sizes[g]`` ids. Tiers beyond those in ``order`` are
            ranges in any case: ids appended after the map was made.
        sizes, bits, num_subspaces, codebook_of: a tier: ids, bits a code, codes a row, and which codebook.
        embedding_dim: d.
        padding_idx: the id whose row is zeros, -1 for none.

    Returns:
        float32 ``(..., d)``; the native kernel and the torch twin agree bit for bit. Codes beyond the
        codebook, which only a damaged file holds, read as its last centroid.

    Raises:
        IndexError: an id out of range, named; nothing is read. TypeError, ValueError: parts that do not fit.
    """
    parts = TableParts(
        codes,
        centroids,
        scales,
        map_bits,
        map_ranks,
        as_ints("order", order),
        as_ints("sizes", sizes),
        as_ints("bits", bits),
        as_ints("num_subspaces", num_subspaces),
        as_ints("codebook_of", codebook_of),
        as_int("embedding_dim", embedding_dim),
        as_int("padding_idx", padding_idx),
    )
    if runs_now(ids):
        return PreparedLookup(parts)(id_tensor(ids))
    rows: Tensor = torch.ops.mgqe.lookup(
        ids,
        parts.codes,
        parts.centroids,
        parts.scales,
        parts.map_bits,
        parts.map_ranks,
        parts.order,
        parts.sizes,
        parts.bits,
        parts.num_subspaces,
        parts.codebook_of,
        parts.embedding_dim,
        parts.padding_idx,
    )  # one by one: torch 2.8 cannot trace vars()
    return rows


def _lookup(ids: Tensor, *parts: Any) -> Tensor:
    return PreparedLookup(TableParts(*parts))._run(ids)


_op = torch.library.custom_op(
    "mgqe::lookup",
    _lookup,
    mutates_args=(),
    schema=(
        "(Tensor ids, Tensor[] codes, Tensor[] centroids, Tensor[] scales, Tensor[] map_bits, "
        "Tensor[] map_ranks, int[] order, int[] sizes, int[] bits, int[] num_subspaces, int[] codebook_of, "
        "int embedding_dim, int padding_idx) -> Tensor"
    ),
)


@_op.register_fake
def _fake(ids: Tensor, *parts: Any) -> Tensor:
    table = TableParts(*parts)
    return ids.new_empty((*ids.shape, table.embedding_dim), dtype=torch.float32)


def max_code(packed: Tensor, num_subspaces: int, bits: int) -> int:
    """The largest code in packed rows, uint8 ``(n, ceil(num_subspaces * bits / 8))``; -1 if there are none.

    Raises:
        TypeError: not uint8. ValueError: a shape that does not fit.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed codes must be uint8, got {packed.dtype}")
    num_subspaces, bits = as_int("num_subspaces", num_subspaces), as_int("bits", bits)
    if not 1 <= bits <= 16 or num_subspaces < 1:
        raise ValueError(f"bits must be 1 to 16 and num_subspaces positive, got {bits} and {num_subspaces}")
    row_bytes = -(-num_subspaces * bits // 8)
    if packed.dim() != 2 or packed.shape[1] != row_bytes:
        raise ValueError(f"packed codes must have shape (n, {row_bytes}), got {tuple(packed.shape)}")
    lib = library() if packed.device.type == "cpu" else None
    if lib is None:
        return reference.max_code(packed, num_subspaces, bits)
    packed = packed.contiguous()
    most = torch.empty(1, dtype=torch.int32, device="cpu")
    check(
        lib.mgqe_max_code(
            packed.data_ptr(), packed.shape[0], num_subspaces, bits, most.data_ptr(), torch.get_num_threads()
        )
    )
    return int(most)
