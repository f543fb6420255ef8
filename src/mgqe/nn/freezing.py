"""From a layer to its frozen table, some rows at a time, so that no more than the packed codes is held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor

from mgqe import ops
from mgqe.checks.inference import outside_inference
from mgqe.codec.capacity import Capacity
from mgqe.codec.layout import CODES, TableLayout
from mgqe.codec.packing import pack
from mgqe.codec.tensors import lay_out_frame
from mgqe.codec.tiers import Tiers
from mgqe.files.container import Shapes
from mgqe.files.reader import Config
from mgqe.nn.rows.checks import SWEEP_ROWS
from mgqe.table.compact import CompactTable

Chunks = Callable[[str], Iterator[Tensor]]


class FreezableLayer(Protocol):
    """What freezing reads of a layer."""

    capacity: Capacity
    centroid_dtype: str
    quantizer: Any

    @property
    def tiers(self) -> Tiers:
        """Which ids are in which tier."""

    @property
    def zero_row(self) -> int | None:
        """The id that looks up as zeros, if there is one."""

    @property
    def raw_weight(self) -> Tensor:
        """The rows; here only their device matters."""

    def codes_of(self, ids: Tensor, tier: int) -> Tensor:
        """Codes (n, D_g) of ids (n,) that are all of one tier."""


def frozen_chunks(layer: FreezableLayer) -> tuple[Shapes, Config, Chunks]:
    """What a layer freezes to: the type and shape of every tensor, the configuration, and the tensors in chunks.

    The chunks of a tensor fill it when they are joined along the first axis.
    """
    tiers, quantizer = layer.tiers, layer.quantizer
    books = quantizer.frozen_codebooks()
    layout = TableLayout.of(tiers, layer.capacity, layer.centroid_dtype, layer.zero_row)
    frame = lay_out_frame(layout, tiers, books, quantizer.transform)
    tier_of_name = {CODES.format(g): g for g in range(tiers.num_tiers)}

    def chunks(name: str) -> Iterator[Tensor]:
        if name in frame:
            yield frame[name]
            return
        tier = tier_of_name[name]
        for ids in tiers.member_chunks(tier, SWEEP_ROWS):
            yield pack(layer.codes_of(ids.to(layer.raw_weight.device), tier).cpu(), layout.tiers[tier].packing)

    return layout.tensors([tuple(book.shape) for book in books]), layout.to_json(), chunks


@outside_inference
def frozen_table(layer: FreezableLayer) -> CompactTable:
    """The table on the CPU, in memory."""
    shapes, config, chunks = frozen_chunks(layer)
    tensors = {}
    for name, (dtype, shape) in shapes.items():
        whole = ops.empty_in_large_pages(shape, dtype)
        start = 0
        for chunk in chunks(name):
            whole[start : start + chunk.shape[0]] = chunk
            start += chunk.shape[0]
        tensors[name] = whole
    return CompactTable.from_tensors(tensors, config)
