"""Checkpoints of even tables, which layers that plan on their rows may be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mgqe.checks.inference import outside_inference
from mgqe.codec.capacity import Capacity
from mgqe.codec.tiers import Tiers
from mgqe.nn.quantization import Quantization
from mgqe.nn.quantizers.mixed import MixedQuantizer
from mgqe.nn.quantizers.vq import VQQuantizer


def even_codebooks(state_dict: Mapping[str, Any], prefix: str, planned: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes (D, K, s) of the codebooks in a layer's checkpoint; none where they have the shape of plans."""
    start = f"{prefix}quantizer.codebooks."
    books = [value for key, value in state_dict.items() if key.startswith(start) and isinstance(value, Tensor)]
    return [tuple(book.shape) for book in books if book.dim() == 3 and book.shape != planned]


def default_capacity(embedding_dim: int, tiers: Tiers) -> Capacity:
    """The even shape that layers without capacity arguments had before they planned on their rows."""
    return Quantization().capacity_of(embedding_dim, tiers)


@outside_inference
def even_quantizer(planned: MixedQuantizer, capacity: Capacity) -> VQQuantizer:
    """A quantiser of an even shape in place of a planned one, with the same parameter, which optimisers may hold."""
    (parameter,) = planned.codebooks
    centroid_dtype = Quantization().centroid_dtype
    even = VQQuantizer(capacity, parameter.detach(), centroid_dtype, planned.commitment, planned.sparse)
    parameter.data = even.codebooks[0].data
    even.codebooks[0] = parameter
    return even.train(planned.training)


def refusal(shapes: list[tuple[int, ...]], prefix: str) -> str:
    """The error of a checkpoint whose shape the layer cannot take."""
    listed = ", ".join(map(str, shapes))
    return (
        f"{prefix.rstrip('.') or 'the layer'}: the checkpoint has codebooks (num_subspaces, num_centroids, dimensions) "
        f"of {listed}, but this layer plans its own on its rows. Make the layer with num_subspaces= and "
        "num_centroids=, and without budget=, as the one that was saved"
    )
