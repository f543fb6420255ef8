"""What every frozen table has: look-up, counted bytes, and a way into a file and back.

A table is a set of named tensors and a small configuration of plain numbers. ``to_tensors`` gives both,
``from_tensors`` takes both and refuses whatever does not fit together, and everything else (bytes, copies,
equality, moves to another device, files in :mod:`mgqe.artifact`) is built on the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mgqe import ops
from mgqe.ids import as_int64, check_ids
from mgqe.inference import outside_inference
from mgqe.scalars import as_int

if TYPE_CHECKING:
    from typing_extensions import Self

Config = dict[str, Any]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

MAX_ROWS = 2**48
MAX_DIM = 2**31 - 1


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

        Raises TypeError for ids that are not integers, IndexError for ids outside [0, num_embeddings).
        """

    @abstractmethod
    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """Everything the table holds: named tensors, and a configuration that JSON can write."""

    def tensor_pieces(self) -> tuple[dict[str, list[Tensor]], Config]:
        """The same, each tensor as the pieces that make it when joined along the first axis: to be written without
        joining them in memory."""
        tensors, config = self.to_tensors()
        return {name: [tensor] for name, tensor in tensors.items()}, config

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """The inverse of :meth:`to_tensors`; the tensors are held, not copied.

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
        return ops.bag_of_rows(
            self.lookup,
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            as_int64(ids),
            offsets,
            mode,
            per_sample_weights,
            include_last_offset,
        )

    def validate(self) -> None:
        """Read the values and raise ValueError if one cannot be right. Files are checked so when loaded."""
        return

    @property
    def device(self) -> torch.device:
        """The device that holds the table."""
        return next(iter(self.to_tensors()[0].values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held; a file adds its header and checksums, one or two kilobytes and 8
        bytes for each MiB."""
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
        table = self._now()
        n, device = table.num_embeddings, table.device
        dense = torch.empty((n, table.embedding_dim), dtype=torch.float32, device=device)
        for start in range(0, n, chunk):
            stop = min(start + chunk, n)
            dense[start:stop] = table.lookup(torch.arange(start, stop, device=device))
        return dense

    def _now(self) -> FrozenTable:
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
        held = ", ".join(f"{part} {size:,}" for part, size in self.nbytes_by_part().items() if size)
        full = 4 * self.num_embeddings * self.embedding_dim
        share = f" = {100 * self.nbytes / full:.1f}% of float32" if full else ""
        detail = self._describe()
        return (
            f"{type(self).__name__}({self.num_embeddings:,} x {self.embedding_dim}"
            f"{', ' + detail if detail else ''}; {self.nbytes:,} bytes{share}: {held or 'none'})"
        )

    def _describe(self) -> str:
        """What a subclass adds to its repr."""
        return ""

    def _rows(self, ids: Tensor) -> Tensor:
        """Ids as int64, known to be in range."""
        return check_ids(ids, self.num_embeddings)

    def _zero_padding(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Rows (..., d) with those of ``padding_idx`` set to zero."""
        if self.padding_idx is None:
            return rows
        return torch.where((ids == self.padding_idx).unsqueeze(-1), 0.0, rows)


class Reader:
    """Takes a table's parts out of tensors and configuration, refusing whatever is not as expected.

    Every method raises ValueError with the name, what was expected and what came. :meth:`finish` refuses what
    nobody asked for: a reader must not ignore a part that changes what the rest means.
    """

    def __init__(self, tensors: dict[str, Tensor], config: Config) -> None:
        if not isinstance(config, dict):
            raise ValueError(f"config must be an object, got {type(config).__name__}")
        self._tensors: dict[str, Tensor] = dict(tensors)
        self._config: Config = dict(config)
        self._device: torch.device | None = None

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of this name: for those that need not be there."""
        return name in self._tensors

    def value(self, name: str) -> Any:
        """A configuration entry, whatever it is."""
        if name not in self._config:
            raise ValueError(f"config has no entry {name!r}")
        return self._config.pop(name)

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return _integer(self.value(name), f"config entry {name!r}", low, high)

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number in [low, high], or null."""
        value = self.value(name)
        return None if value is None else _integer(value, f"config entry {name!r}", low, high)

    def integers(self, name: str, low: int, high: int, length: int | None = None) -> tuple[int, ...]:
        """A list of whole numbers in [low, high]."""
        values = self.value(name)
        if not isinstance(values, list):
            raise ValueError(f"config entry {name!r} must be a list, got {_short(values)}")
        if length is not None and len(values) != length:
            raise ValueError(f"config entry {name!r} must have {length} entries, got {len(values)}")
        return tuple(_integer(v, f"config entry {name!r}[{i}]", low, high) for i, v in enumerate(values))

    def choice(self, name: str, choices: Collection[str]) -> str:
        """One of a few words."""
        value = self.value(name)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"config entry {name!r} must be one of {sorted(choices)}, got {_short(value)}")
        return value

    def tensor(self, name: str, dtype: torch.dtype | tuple[torch.dtype, ...], shape: tuple[int | None, ...]) -> Tensor:
        """A tensor of this type (or one of these) and shape; None stands for any size from 1 up."""
        if name not in self._tensors:
            raise ValueError(f"tensor {name!r} is missing")
        tensor: object = self._tensors.pop(name)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            came = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"tensor {name!r} must be a dense torch.Tensor, got {came}")
        self._check_device(name, tensor.device)
        dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
        if tensor.dtype not in dtypes:
            wanted = " or ".join(map(str, dtypes))
            raise ValueError(f"tensor {name!r} must be {wanted}, got {tensor.dtype}")
        found = tuple(tensor.shape)
        fits = len(found) == len(shape) and all(
            got >= 1 if want is None else got == want for got, want in zip(found, shape, strict=True)
        )
        if not fits:
            wanted = str(shape).replace("None", "any")
            raise ValueError(f"tensor {name!r} must have shape {wanted}, got {found}")
        return tensor

    def _check_device(self, name: str, device: torch.device) -> None:
        """The kernels read all tensors where the first one is."""
        self._device = self._device or device
        if device != self._device:
            raise ValueError(
                f"tensor {name!r} is on {device}, the table's other tensors on {self._device}: move all to one device"
            )

    def finish(self) -> None:
        """Nothing may be left over."""
        if self._tensors:
            raise ValueError(f"unexpected tensors {sorted(self._tensors)[:5]}")
        if self._config:
            raise ValueError(f"unexpected config entries {sorted(map(str, self._config))[:5]}")


def require_finite(name: str, values: Tensor) -> None:
    """Raise ValueError if a float tensor holds NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"tensor {name!r} holds NaN or infinity")


def _rebuild(cls: type[FrozenTable], tensors: dict[str, Tensor], config: Config) -> FrozenTable:
    return cls.from_tensors(tensors, config)


def _integer(value: object, what: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{what} must be a whole number in {low} .. {high}, got {_short(value)}")
    return value


def _short(value: object) -> str:
    """A value for an error message; a hostile file may hold a very long one."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
