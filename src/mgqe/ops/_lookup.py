"""Look-up in a frozen table: packed codes -> float32 rows, without ever unpacking the table."""

from __future__ import annotations

import weakref
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mgqe.checks.ids import as_int64, check_device
from mgqe.checks.scalars import as_int
from mgqe.ops import reference
from mgqe.ops._checks import FALLBACK, all_below, id_error
from mgqe.ops._descriptor import EVEN_SCHEMA, MIXED_SCHEMA, Descriptor, TableBuffers
from mgqe.ops._eager import runs_now
from mgqe.ops._library import LONG_ROWS, OUT_OF_RANGE, check, library, library_on
from mgqe.ops._triton import gpu_table
from mgqe.ops.layout.packed_format import MAX_BITS


class PreparedLookup:
    """A table checked once and laid out for the kernels, so that a look-up of one id costs microseconds.

    The codes are not copied. A copy or a pickle has the table alone and lays it out again.

    Attributes:
        table: the table.
        fallback: float32 ``(d,)``, the row of every id outside the table; None to refuse such ids.
        descriptor: the table as the kernels read it; None where the torch twin does the work.
        gpu_table: the table as the kernels for GPUs read it; None where it is not on one, or Triton is missing.
    """

    def __init__(self, table: TableBuffers, fallback: Tensor | None = None) -> None:
        """Raises TypeError or ValueError, naming the argument, unless the table fits together."""
        table.check()
        self.table = table
        self.fallback = fallback
        self.descriptor = Descriptor(table) if library_on(table.device) is not None else None
        self.gpu_table = gpu_table(table)
        self._num_embeddings = table.num_embeddings
        self._row_squares: Tensor | None = None
        _PREPARED[_anchor(table).data_ptr()] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedLookup, (self.table, self.fallback)

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

    def row_squares(self) -> Tensor | None:
        """Squared lengths of the rows, float32 ``(N,)`` by tier and row, which searches by cosine divide by.

        They are worked out at the first call, and kept: 4 bytes per id. None unless the table has a matrix and the
        kernels do the work, and where a row's squared length leaves float32, so that searches must be refused.

        Raises:
            ValueError: the tier map is damaged. MemoryError.
        """
        descriptor, lib = self.descriptor, library()
        if self._row_squares is None and descriptor is not None and lib is not None and self.table.matrix is not None:
            squares = torch.empty(self._num_embeddings, dtype=torch.float32, device="cpu")
            status = lib.mgqe_row_squares(descriptor.address, squares.data_ptr(), torch.get_num_threads())
            if status == LONG_ROWS:
                return None
            check(status)
            self._row_squares = squares
        return self._row_squares

    def without_fallback(self) -> PreparedLookup:
        """The same table, laid out no second time, that refuses ids outside."""
        if self.fallback is None:
            return self
        other = object.__new__(PreparedLookup)
        other.__dict__.update(self.__dict__, fallback=None)
        return other

    def _known(self, ids: Tensor) -> Tensor:
        return (ids >= 0) & (ids < self._num_embeddings)

    def _traced(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.table.operator("lookup")(ids, *self.table.arguments())
        return rows

    def _run(self, ids: Tensor) -> Tensor:
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or not ids.is_contiguous():
            ids = as_int64(ids).contiguous()
        check_device(ids, self.table.device)
        descriptor, lib = self.descriptor, library()
        if descriptor is None or lib is None:
            if not all_below(ids, self._num_embeddings):
                return self._run_unknown(ids)
            if self.gpu_table is not None:
                found: Tensor = self.gpu_table(ids.reshape(-1))
                return found.view(*ids.shape, self.table.embedding_dim)
            return reference.lookup(ids, self.table)
        rows = torch.empty((*ids.shape, self.table.embedding_dim), dtype=torch.float32, device=ids.device)
        status = lib.mgqe_lookup(
            descriptor.address, ids.data_ptr(), ids.numel(), rows.data_ptr(), torch.get_num_threads()
        )
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


# Tables that are laid out, while somebody keeps them, by the address of their first codes.
_PREPARED: WeakValueDictionary[int, PreparedLookup] = WeakValueDictionary()
# Those that nobody else keeps, until their codes' tensor is gone, and how often their tensors had been written to.
_OF_OPERATORS: dict[int, tuple[PreparedLookup, list[int]]] = {}


def _anchor(table: TableBuffers) -> Tensor:
    """The tensor by whose address a layout is found: the first codes that have one."""
    return next((rows for rows in table.codes if rows.numel()), table.codes[0])


def prepared_of(table: TableBuffers) -> PreparedLookup:
    """A table as an operator of a graph takes it, laid out once for all calls.

    Where a layer still holds it, by the layer: the kept table's tensors are alive, so that tensors at the same
    addresses are the same ones. A layer that has loaded another state, was moved or has grown holds other tensors, and
    its own layout of these. Where nobody has laid it out, as in an exported program, here: until the tensor of its
    codes is gone, and anew after one of its tensors was written to, as a program is that loads another state.

    Raises as PreparedLookup.
    """
    if not table.codes:
        return PreparedLookup(table)  # which says what is wrong
    anchor = _anchor(table)
    kept = _PREPARED.get(anchor.data_ptr())
    if kept is None or not kept.table.is_the_same_as(table):
        return _laid_out(table, anchor)
    of_operators, versions = _OF_OPERATORS.get(anchor.data_ptr(), (None, []))
    if kept is of_operators and versions != _versions(table):
        return _laid_out(table, anchor)
    return kept.without_fallback()  # a graph takes such ids out before it calls the operator


def _laid_out(table: TableBuffers, anchor: Tensor) -> PreparedLookup:
    """The table, laid out, and kept for the operator's next call."""
    if any(each.is_inference() for each in table.tensors()):  # which are not counted when they are written to
        return PreparedLookup(table)
    made, address = PreparedLookup(table.without_holding()), anchor.data_ptr()
    _OF_OPERATORS[address] = made, _versions(table)
    weakref.finalize(anchor, _OF_OPERATORS.pop, address, None).atexit = False
    return made


def _versions(table: TableBuffers) -> list[int]:
    return [each._version for each in table.tensors()]


def lookup(ids: Tensor, table: TableBuffers) -> Tensor:
    """Rows of a frozen table. For many calls on one table make a :class:`PreparedLookup` instead.

    Args:
        ids: integers ``(...)``.
        table: the table.

    Returns:
        float32 ``(..., d)``; the native kernel and the torch twin agree bit for bit. Codes beyond the
        codebook, which only a damaged file holds, read as its last centroid.

    Raises:
        IndexError: an id out of range, named; nothing is read.
        TypeError, ValueError: tensors or numbers of the table that do not fit together.
    """
    table = table.with_plain_numbers()
    if runs_now(ids):
        return PreparedLookup(table)(as_int64(ids).contiguous())
    rows: Tensor = table.operator("lookup")(ids, *table.arguments())
    return rows


def _lookup(ids: Tensor, *arguments: Any) -> Tensor:
    return prepared_of(TableBuffers.of_arguments(arguments))._run(ids)


def _fake(ids: Tensor, *arguments: Any) -> Tensor:
    return ids.new_empty((*ids.shape, TableBuffers.of_arguments(arguments).embedding_dim), dtype=torch.float32)


for _name, _table in (("lookup", EVEN_SCHEMA), ("lookup_mixed", MIXED_SCHEMA)):
    torch.library.custom_op(
        f"mgqe::{_name}", _lookup, mutates_args=(), schema=f"(Tensor ids, {_table}) -> Tensor"
    ).register_fake(_fake)


def max_code(packed: Tensor, num_subspaces: int, bits: int) -> int:
    """The largest code in packed rows, uint8 ``(n, ceil(num_subspaces * bits / 8))``; -1 if there are none.

    Raises:
        TypeError: not uint8. ValueError: a shape that does not fit.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed codes must be uint8, got {packed.dtype}")
    num_subspaces, bits = as_int("num_subspaces", num_subspaces), as_int("bits", bits)
    if not 1 <= bits <= MAX_BITS or num_subspaces < 1:
        raise ValueError(f"bits must be 1 to {MAX_BITS} and num_subspaces positive, got {bits} and {num_subspaces}")
    row_bytes = -(-num_subspaces * bits // 8)
    if packed.dim() != 2 or packed.shape[1] != row_bytes:
        raise ValueError(f"packed codes must have shape (n, {row_bytes}), got {tuple(packed.shape)}")
    lib = library_on(packed.device)
    if lib is None:
        return reference.max_code(packed, num_subspaces, bits)
    packed = packed.contiguous()
    largest = torch.empty(1, dtype=torch.int32, device="cpu")
    check(
        lib.mgqe_max_code(
            packed.data_ptr(), packed.shape[0], num_subspaces, bits, largest.data_ptr(), torch.get_num_threads()
        )
    )
    return int(largest)
