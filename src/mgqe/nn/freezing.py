"""From a layer to its frozen table, piece by piece: no more than the packed codes is ever held, or not even these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from mgqe.checks.inference import outside_inference
from mgqe.codec.capacity import Capacity
from mgqe.codec.layout import lay_out_frame
from mgqe.codec.packing import bits_for, pack, row_bytes
from mgqe.codec.tiers import Tiers
from mgqe.files.reader import Config
from mgqe.nn.rows.raw import SWEEP_ROWS
from mgqe.table.compact import CompactTable

Pieces = Callable[[str], Iterator[Tensor]]


class FreezableLayer(Protocol):
    """What freezing reads of a layer."""

    capacity: Capacity
    centroid_dtype: str
    quantizer: Any

    @property
    def tiers(self) -> Tiers:
        """Which ids are in which tier."""
        ...

    @property
    def zero_row(self) -> int | None:
        """The id that looks up as zeros, if there is one."""
        ...

    @property
    def raw_weight(self) -> Tensor:
        """The rows; here only their device matters."""
        ...

    def codes_of(self, ids: Tensor, tier: int) -> Tensor:
        """Codes (n, D_g) of ids (n,) that are all of one tier."""
        ...


def frozen_pieces(layer: FreezableLayer) -> tuple[dict[str, Tensor], Config, Pieces]:
    """What a layer freezes to: every tensor's shape and type, the configuration, and the tensors in pieces.

    Codes have a shape alone; the pieces of a tensor, joined along the first axis, fill it.
    """
    tiers, capacity = layer.tiers, layer.capacity
    small, config = lay_out_frame(
        tiers,
        layer.quantizer.frozen_codebooks(),
        capacity.codebook_of,
        capacity.num_subspaces,
        capacity.num_centroids,
        layer.zero_row,
        layer.centroid_dtype,
    )
    shapes = dict(small)
    for g, (n, subspaces, k) in enumerate(
        zip(tiers.sizes, capacity.num_subspaces, capacity.num_centroids, strict=True)
    ):
        shapes[f"codes.{g}"] = torch.empty(n, row_bytes(subspaces, bits_for(k)), dtype=torch.uint8, device="meta")

    def pieces(name: str) -> Iterator[Tensor]:
        if name in small:
            yield small[name]
            return
        tier = int(name.removeprefix("codes."))
        bits = bits_for(capacity.num_centroids[tier])
        for ids in tiers.member_chunks(tier, SWEEP_ROWS):
            yield pack(layer.codes_of(ids.to(layer.raw_weight.device), tier).cpu(), bits)

    return shapes, config, pieces


@outside_inference
def frozen_table(layer: FreezableLayer) -> CompactTable:
    """The table on the CPU, in memory."""
    shapes, config, pieces = frozen_pieces(layer)
    tensors = {}
    for name, shape in shapes.items():
        whole = torch.empty(shape.shape, dtype=shape.dtype, device="cpu")
        start = 0
        for piece in pieces(name):
            whole[start : start + piece.shape[0]] = piece
            start += piece.shape[0]
        tensors[name] = whole
    return CompactTable.from_tensors(tensors, config)
