"""TableLayout: the name, type and shape of every tensor, the configuration in a file, and what a layout refuses."""

from __future__ import annotations

import io
import json

import pytest
from table_cases import CASES, build

import mgqe
from mgqe.codec.capacity import Capacity, TierShape
from mgqe.codec.layout import TableLayout, frozen_nbytes
from mgqe.files.reader import Reader

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_tensors_are_those_of_the_table(case):
    built = build(case)
    tensors, config = built.table.to_tensors()
    layout = built.table.config
    shapes = layout.tensors([tuple(book.shape) for book in built.codebooks])
    assert shapes == {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert TableLayout.read(Reader({}, json.loads(json.dumps(config)))) == layout


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_bytes_of_a_frozen_layer_are_those_of_its_file(shuffled):
    tiers = mgqe.Tiers.from_assignment([1, 0] * 300) if shuffled else mgqe.Tiers.from_sizes((300, 300))
    layer = mgqe.MGQEmbedding(600, 8, tiers=tiers, num_centroids=(16, 4), centroid_dtype="int8", padding_idx=3)
    predicted = frozen_nbytes(tiers, layer.capacity, 3, "int8")
    assert predicted == mgqe.save(layer.freeze(), io.BytesIO())


def test_a_shape_says_its_bits_its_bytes_and_itself():
    tier = TierShape(9000, 3, 17, codebook=1)
    assert (tier.bits, tier.row_bytes, tier.describe()) == (5, 2, "9,000 ids x 3 of 17")
    assert Capacity.of(12, (1000, 9000), (3, 3), (256, 17)).describe() == "1,000 ids x 3 of 256; 9,000 ids x 3 of 17"


def test_an_unknown_type_of_centroids_is_refused():
    with pytest.raises(ValueError, match="centroid_dtype must be one of"):
        TableLayout(4, (TierShape(3, 2, 4),), "bfloat16")
