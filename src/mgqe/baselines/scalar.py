"""Scalar quantisation after training: every value on a uniform grid of 2**bits levels (SQ in the MGQE paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mgqe.baselines.base import cpu_values, read_sizes, sizes_of
from mgqe.baselines.budget import blank, file_nbytes, most_within
from mgqe.baselines.full import FullEmbedding
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int, optional_int
from mgqe.codec.packing import pack, row_bytes, spare_bits_are_zero, unpack
from mgqe.files.reader import Config, Reader, require_finite
from mgqe.table.base import FrozenTable
from mgqe.table.io import register_kind

if TYPE_CHECKING:
    from typing_extensions import Self

# The dtype of a grid's step and offset. There are N grids of rows, but only d of dimensions.
GRID_DTYPES = {"row": torch.float16, "dimension": torch.float32}
MAX_SCALAR_BITS = 8
CLIPS = tuple(1 - 0.04 * i for i in range(20))  # shares of the range that are tried, for the least squared error
CHUNK_VALUES = 1 << 22


@register_kind
class ScalarTable(FrozenTable):
    """Packed codes (N, ceil(d * bits / 8)) and grids: value = offset + step * code, in float32.

    A grid belongs to a row (``granularity="row"``, float16) or to a dimension ("dimension", float32).
    """

    kind = "scalar"

    def __init__(
        self,
        codes: Tensor,
        step: Tensor,
        offset: Tensor,
        dim: int,
        bits: int,
        granularity: str,
        padding_idx: int | None,
    ) -> None:
        self.codes = codes
        self.step = step
        self.offset = offset
        self.num_embeddings, self.embedding_dim = codes.shape[0], as_int("dim", dim, 1)
        self.bits = as_int("bits", bits, 1, MAX_SCALAR_BITS)
        self.granularity = granularity
        self.padding_idx = optional_int("padding_idx", padding_idx)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., d)."""
        rows = self._rows(ids)
        flat = rows.reshape(-1)
        codes = unpack(self.codes[flat], self.embedding_dim, self.bits)
        step, offset = self.step.float(), self.offset.float()
        if self.granularity == "row":
            step, offset = step[flat].unsqueeze(-1), offset[flat].unsqueeze(-1)
        values = (codes * step + offset).view(*rows.shape, self.embedding_dim)
        return self._zero_padding(rows, values)

    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """``codes``, ``step`` and ``offset``."""
        return {"codes": self.codes, "step": self.step, "offset": self.offset}, {
            **sizes_of(self),
            "bits": self.bits,
            "granularity": self.granularity,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """The inverse of :meth:`to_tensors`."""
        reader = Reader(tensors, config)
        n, d, padding_idx = read_sizes(reader)
        bits = reader.integer("bits", 1, MAX_SCALAR_BITS)
        granularity = reader.choice("granularity", GRID_DTYPES.keys())
        codes = reader.tensor("codes", torch.uint8, (n, row_bytes(d, bits)))
        shape = (n,) if granularity == "row" else (d,)
        step = reader.tensor("step", GRID_DTYPES[granularity], shape)
        offset = reader.tensor("offset", GRID_DTYPES[granularity], shape)
        reader.finish()
        return cls(codes, step, offset, d, bits, granularity, padding_idx)

    def validate(self) -> None:
        """Grids must be finite and spare bits zero."""
        require_finite("step", self.step)
        require_finite("offset", self.offset)
        if not spare_bits_are_zero(self.codes, self.embedding_dim, self.bits):
            raise ValueError("tensor 'codes' has spare bits that are not zero")

    def _describe(self) -> str:
        return f"{self.bits} bits per value, a grid per {self.granularity}"


class ScalarQuantizedEmbedding(FullEmbedding):
    """Trains as a full table; ``freeze()`` rounds every value to ``bits`` bits.

    Arguments up to ``dtype`` are nn.Embedding's. The eval-mode forward pass is that of the full table: look-ups
    in the frozen one differ from it by the rounding.

    Args:
        bits: 1 to 8 per value.
        granularity: "dimension", one grid per column, or "row", one grid per row, which costs 4 bytes each. On ml-1m
            (GMF, d = 64) columns were better at equal bytes from 1 to 4 bits, and as good above.

    Raises:
        ValueError: bits or granularity out of range, and as FullEmbedding.
    """

    def __init__(self, *args: Any, bits: int = 8, granularity: str = "dimension", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if granularity not in GRID_DTYPES:
            raise ValueError(f"granularity must be one of {sorted(GRID_DTYPES)}, got {granularity!r}")
        self.bits = as_int("bits", bits, 1, MAX_SCALAR_BITS)
        self.granularity = granularity

    @classmethod
    def within(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        nbytes: int,
        *,
        bits: int | None = None,
        granularity: str = "dimension",
        **given: Any,
    ) -> dict[str, Any]:
        """Keywords for a file of at most ``nbytes``: the most bits.

        Raises TooFewBytesError, a ValueError, if nothing fits.
        """
        if granularity not in GRID_DTYPES:
            return {}  # the constructor says what is wrong
        grids = blank(num_embeddings if granularity == "row" else embedding_dim, dtype=GRID_DTYPES[granularity])

        def nbytes_of(bits: int) -> int:
            codes = blank(num_embeddings, row_bytes(embedding_dim, bits), dtype=torch.uint8)
            return file_nbytes(ScalarTable(codes, grids, grids, embedding_dim, bits, granularity, None))

        numbers = range(1, MAX_SCALAR_BITS + 1) if bits is None else [bits]
        return {"bits": most_within(numbers, nbytes_of, nbytes, (num_embeddings, embedding_dim))}

    @outside_inference
    def freeze(self) -> FrozenTable:  # type: ignore[override]  # nn.Embedding annotates a bool it never sets
        """Round the rows: a :class:`ScalarTable` on the CPU.

        Each grid spans the share of its values' range that has the least squared error: with few bits, a grid over
        the whole range would use most of its levels for outliers.
        """
        weight = cpu_values(self, "weight").float()
        step, offset = fit_grids(weight, self.bits, self.granularity)
        codes = torch.empty(self.num_embeddings, row_bytes(self.embedding_dim, self.bits), dtype=torch.uint8)
        rows = max(1, CHUNK_VALUES // self.embedding_dim)
        for start in range(0, self.num_embeddings, rows):
            chunk = slice(start, start + rows)
            grid = (step, offset)
            if self.granularity == "row":
                grid = (step[chunk].unsqueeze(-1), offset[chunk].unsqueeze(-1))
            codes[chunk] = pack(_round(weight[chunk], *grid, self.bits).to(torch.int32), self.bits)
        return ScalarTable(codes, step, offset, self.embedding_dim, self.bits, self.granularity, self.padding_idx)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return f"{super().extra_repr()}, bits={self.bits}, granularity={self.granularity!r}"


def fit_grids(weight: Tensor, bits: int, granularity: str) -> tuple[Tensor, Tensor]:
    """Step and offset of each grid, (N,) float16 for rows or (d,) float32 for dimensions.

    Args:
        weight: (N, d) float32.
        bits: 1 to 8.
        granularity: "row" or "dimension".

    Raises:
        ValueError: values whose range is beyond float32, or values beyond 65504 with float16 grids.
    """
    axis = 1 if granularity == "row" else 0
    dtype = GRID_DTYPES[granularity]
    if weight.shape[0] == 0:
        empty = torch.zeros(weight.shape[1 - axis], dtype=dtype)
        return empty, empty.clone()
    low, high = weight.amin(dim=axis), weight.amax(dim=axis)
    if not bool(torch.isfinite(high - low).all()):  # else a narrower grid would cut off values that are no outliers
        raise ValueError("values whose range is beyond float32 do not fit a grid: scale the weights down")
    middle, half = low / 2 + high / 2, high / 2 - low / 2  # the sum or the difference may overflow
    levels = (1 << bits) - 1
    best = torch.full_like(low, float("inf"), dtype=torch.float64)  # squares of large values overflow float32
    step, offset = torch.zeros_like(low, dtype=dtype), torch.zeros_like(low, dtype=dtype)
    for clip in CLIPS:
        # Codes are chosen for the grid in its stored dtype, so that its rounding does no harm.
        stored_step = (2 * clip * half / levels).to(dtype)
        stored_offset = (middle - clip * half).to(dtype)
        grid = (stored_step.unsqueeze(axis), stored_offset.unsqueeze(axis))
        error = (_decode(_round(weight, *grid, bits), *grid) - weight).double().square().sum(dim=axis)
        better = error < best
        best = torch.where(better, error, best)
        step, offset = torch.where(better, stored_step, step), torch.where(better, stored_offset, offset)
    if not bool(torch.isfinite(offset).all() and torch.isfinite(step).all() and torch.isfinite(best).all()):
        raise ValueError('values beyond 65504 do not fit a row\'s float16 grid: use granularity="dimension"')
    return step, offset


def _round(weight: Tensor, step: Tensor, offset: Tensor, bits: int) -> Tensor:
    """The nearest code of each value, as float; a grid of step 0 has code 0 alone."""
    safe = torch.where(step > 0, step.float(), 1.0)
    return ((weight - offset.float()) / safe).round().clamp(0, (1 << bits) - 1)


def _decode(codes: Tensor, step: Tensor, offset: Tensor) -> Tensor:
    return codes * step.float() + offset.float()
