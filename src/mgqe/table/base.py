"""What every frozen table has: look-up, counted bytes, and a way into a file and back.

A table is a set of named tensors and a small configuration of plain numbers. ``to_tensors`` gives both,
``from_tensors`` takes both and refuses what does not fit together, and all the rest (bytes, copies,
equality, moves to another device, files in :mod:`mgqe.table.io`) is built on the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mgqe import ops
from mgqe.checks.ids import as_int64, check_ids, plain_ids
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int
from mgqe.files.reader import Config

if TYPE_CHECKING:
    from typing_extensions import Self


class FrozenTable(ABC):
    """A read-only embedding table: ids in, float32 rows out, and nothing that only training needs.

    Attributes:
        kind: the name under which files record this class.
        num_embeddings: rows.
        embedding_dim: d, floats of a row.
        padding_idx: the id whose row is zeros, or None.
    """

    kind: ClassVar[str]
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None

    @abstractmethod
    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., embedding_dim), on the table's device.

        Ids are a tensor, an array, a list, or one integer.

        Raises TypeError for ids that are not integers, IndexError for ids outside [0, num_embeddings).
        """

    @abstractmethod
    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """Everything the table holds: named tensors, and a configuration that JSON can write."""

    def tensor_chunks(self) -> tuple[dict[str, list[Tensor]], Config]:
        """Like :meth:`to_tensors`, but each tensor as the chunks that make it when joined along the first axis, so that
        it can be written without being joined in memory."""
        tensors, config = self.to_tensors()
        return {name: [tensor] for name, tensor in tensors.items()}, config

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """The inverse of :meth:`to_tensors`; the tensors are not copied.

        Raises ValueError naming what is missing, too many, of the wrong type or shape, or contradictory.
        Values are not read, those of a tier map aside: see :meth:`validate`.
        """

    def bag(
        self,
        ids: Tensor,
        offsets: Tensor | None = None,
        mode: str = "sum",
        per_sample_weights: Tensor | None = None,
        include_last_offset: bool = False,
    ) -> Tensor:
        """Sums, means or maxima of bags of rows -> float32 (B, embedding_dim), as nn.EmbeddingBag in eval mode.

        Args:
            ids: integers (B, L), or (n,) together with ``offsets``. Ids equal to ``padding_idx`` are left out, also
                of a mean's count; a bag without ids gives zeros.
            offsets: integers (B,), where each bag starts; (B + 1,) with ``include_last_offset``, the last being n.
            mode: "sum", "mean" or "max".
            per_sample_weights: floats like ids, only for "sum".
            include_last_offset: see ``offsets``.

        Rows are added in float32 in the order of the ids: the same bits on every machine, with any number of threads.
        A sum beyond float32 is infinite, also on the way to a mean, as in nn.EmbeddingBag.

        Raises:
            IndexError: an id out of range. ValueError: offsets that do not start at 0, decrease or exceed n;
                shapes or modes that do not fit. TypeError: other dtypes.
        """
        offsets = None if offsets is None else plain_ids(offsets)
        return self._bag(as_int64(plain_ids(ids)), offsets, mode, per_sample_weights, include_last_offset)

    def _bag(self, *bags: Any) -> Tensor:
        """:meth:`bag`, of arguments in its order, the ids as int64."""
        return ops.bag_of_rows(self.lookup, self.num_embeddings, self.embedding_dim, self.padding_idx, *bags)

    def __len__(self) -> int:
        """N."""
        return self.num_embeddings

    def __bool__(self) -> bool:
        """True, also of a table without rows: it is there."""
        return True

    def __getitem__(self, ids: Any) -> Tensor:
        """Rows of ids, as :meth:`lookup` returns them; of a slice, its rows."""
        if isinstance(ids, slice):
            ids = np.arange(*ids.indices(self.num_embeddings))
        return self.lookup(ids)

    def __contains__(self, id: Any) -> bool:
        """Whether a whole number is the id of a row, so that it can be looked up."""
        return isinstance(id, (int, np.integer)) and 0 <= int(id) < self.num_embeddings

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """A copy of all rows, decoded: what ``np.asarray(table)`` gives. ValueError: a copy is not wanted."""
        if copy is False:
            raise ValueError("a table holds codes, so that its rows are a copy: leave copy=False out")
        rows: np.ndarray = self.to_dense().cpu().numpy()
        return rows if dtype is None else rows.astype(dtype)

    def validate(self) -> None:
        """Read the values and raise ValueError if one cannot be right. Files are checked so when loaded."""
        return

    @property
    def device(self) -> torch.device:
        """The device that holds the table."""
        return next(iter(self.to_tensors()[0].values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; a file adds its header and checksums, one or two kilobytes and 8 bytes for each MiB."""
        return sum(tensor.nbytes for tensor in self.to_tensors()[0].values())

    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes by part; they sum to :attr:`nbytes`."""
        parts: dict[str, int] = {}
        for name, tensor in self.to_tensors()[0].items():
            part = name.partition(".")[0]
            parts[part] = parts.get(part, 0) + tensor.nbytes
        return parts

    def to_dense(self, chunk: int = 65_536) -> Tensor:
        """All rows, float32 (num_embeddings, embedding_dim), looked up ``chunk`` ids at a time."""
        chunk = as_int("chunk", chunk, 1)
        table = self._unchanging()
        n, device = table.num_embeddings, table.device
        dense = torch.empty((n, table.embedding_dim), dtype=torch.float32, device=device)
        for start in range(0, n, chunk):
            stop = min(start + chunk, n)
            dense[start:stop] = table.lookup(torch.arange(start, stop, device=device))
        return dense

    @property
    def snapshot(self) -> object:
        """What the table holds now: another object after each change, of tables that can change; internal."""
        return self

    def _unchanging(self) -> FrozenTable:
        """This table as it is now, for work of several steps; a table that can change gives one that will not."""
        return self

    @outside_inference
    def to(self, device: torch.device | str) -> Self:
        """The same table on another device."""
        tensors, config = self.to_tensors()
        return type(self).from_tensors({name: t.to(device) for name, t in tensors.items()}, config)

    def equal(self, other: object) -> bool:
        """Whether ``other`` is a table of the same kind that holds the same configuration and bits."""
        if not isinstance(other, FrozenTable) or type(other) is not type(self):
            return False
        (mine, config), (theirs, other_config) = self.to_tensors(), other.to_tensors()
        return (
            config == other_config
            and mine.keys() == theirs.keys()
            and all(
                mine[name].dtype == theirs[name].dtype and torch.equal(mine[name].cpu(), theirs[name].cpu())
                for name in mine
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        tensors, config = self.to_tensors()
        # Clones: a tensor mapped from a file would otherwise drag its whole storage into the pickle.
        return _rebuild, (type(self), {name: t.clone() for name, t in tensors.items()}, config)

    def __repr__(self) -> str:
        parts = ", ".join(f"{part} {size:,}" for part, size in self.nbytes_by_part().items() if size)
        full = 4 * self.num_embeddings * self.embedding_dim
        share = f" = {100 * self.nbytes / full:.1f}% of float32" if full else ""
        detail = self._describe()
        return (
            f"{type(self).__name__}({self.num_embeddings:,} x {self.embedding_dim}"
            f"{', ' + detail if detail else ''}; {self.nbytes:,} bytes{share}: {parts or 'none'})"
        )

    def _describe(self) -> str:
        """What a subclass adds to its repr."""
        return ""

    def _rows(self, ids: Tensor) -> Tensor:
        """Ids as int64, known to be in range."""
        return check_ids(plain_ids(ids), self.num_embeddings)

    def _zero_padding(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Rows (..., d) with those of ``padding_idx`` set to zero."""
        if self.padding_idx is None:
            return rows
        return torch.where((ids == self.padding_idx).unsqueeze(-1), 0.0, rows)


def _rebuild(cls: type[FrozenTable], tensors: dict[str, Tensor], config: Config) -> FrozenTable:
    return cls.from_tensors(tensors, config)
