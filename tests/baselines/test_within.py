"""What a budget chooses for the baselines: the file fits, and the next larger table would not."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mgqe
from mgqe.baselines import (
    AdditiveEmbedding,
    CCEmbedding,
    FullEmbedding,
    HashEmbedding,
    LowRankEmbedding,
    QREmbedding,
    RecJPQEmbedding,
    ScalarQuantizedEmbedding,
    SVDEmbedding,
    TooFewBytesError,
)

# Class -> the keyword of which a budget buys the most.
BUY_ONE: dict[Any, str] = {
    ScalarQuantizedEmbedding: "bits",
    LowRankEmbedding: "rank",
    SVDEmbedding: "rank",
    HashEmbedding: "num_buckets",
    QREmbedding: "num_remainders",
    AdditiveEmbedding: "num_codebooks",
}
BUY_BITS: dict[Any, tuple[str, str]] = {
    RecJPQEmbedding: ("num_subspaces", "num_centroids"),
    CCEmbedding: ("num_columns", "num_centroids"),
}
LONGEST_SEED = {HashEmbedding: {"seed": 2**31 - 1}, CCEmbedding: {"seed": 2**31 - 1}}
sizes = st.tuples(st.integers(20, 600), st.sampled_from([4, 6, 8, 12, 16]))
shares = st.floats(0.01, 0.9)


def written(layer: Any, n: int, d: int, **keywords: Any) -> int:
    """Bytes of the file of a layer of this class."""
    return mgqe.save(layer(n, d, **keywords, **LONGEST_SEED.get(layer, {})).freeze(), io.BytesIO())


@pytest.mark.parametrize("layer", BUY_ONE)
@settings(max_examples=15, deadline=None)
@given(sizes, shares)
def test_the_most_that_fits(layer: Any, size: tuple[int, int], share: float) -> None:
    nbytes = int(share * 4 * size[0] * size[1])
    with pytest.raises(TooFewBytesError) as caught:
        layer.within(*size, 0)
    least = caught.value.least
    assert written(layer, *size, **layer.within(*size, least)) == least
    if nbytes < least:
        with pytest.raises(TooFewBytesError):
            layer.within(*size, nbytes)
        return
    options = layer.within(*size, nbytes)
    assert written(layer, *size, **options) <= nbytes
    more = {**options, BUY_ONE[layer]: options[BUY_ONE[layer]] + 1}
    if more.get("bits") != 9 and more.get("num_buckets") != size[0] and more.get("rank", 0) <= size[1]:
        assert written(layer, *size, **more) > nbytes


@pytest.mark.parametrize("layer", [LowRankEmbedding, SVDEmbedding])
def test_float16_buys_twice_the_rank(layer: Any) -> None:
    size, nbytes = (1000, 32), 4 * 5 * (1000 + 32) + 1000  # five columns of float32, and a header
    assert layer.within(*size, nbytes) == {"rank": 5}
    assert layer.within(*size, nbytes, stored_dtype="float32") == {"rank": 5}
    assert layer.within(*size, nbytes, stored_dtype="float16") == {"rank": 10}
    assert written(layer, *size, rank=10, stored_dtype="float16") <= nbytes
    with pytest.raises(TooFewBytesError):
        layer.within(*size, 2 * 1032, stored_dtype="float16")


@pytest.mark.parametrize("layer", BUY_BITS)
@settings(max_examples=8, deadline=None)
@given(sizes, shares)
def test_the_most_bits_that_fit(layer: Any, size: tuple[int, int], share: float) -> None:
    nbytes = int(share * 4 * size[0] * size[1])
    shapes = [(pieces, bits) for pieces in range(1, 17) if size[1] % pieces == 0 for bits in range(1, 9)]
    more = {"centroid_dtype": "int8"} if layer is RecJPQEmbedding else {}
    fitting = [
        (pieces * bits, bits)
        for pieces, bits in shapes
        if 2**bits <= size[0]
        and written(layer, *size, **dict(zip(BUY_BITS[layer], (pieces, 2**bits), strict=True)), **more)
        <= nbytes - 64 * (layer is CCEmbedding)  # the header may be so much longer after many clusterings
    ]
    assume(fitting)
    options = layer.within(*size, nbytes)
    pieces, centroids = (options[name] for name in BUY_BITS[layer])
    bits = centroids.bit_length() - 1
    assert (pieces * bits, bits) >= max(fitting)
    assert written(layer, *size, **options) <= nbytes


def test_small_d_is_counted_exactly() -> None:
    for n, d in ((1, 1), (77, 3), (5000, 64)):
        assert FullEmbedding.frozen_nbytes(n, d) == written(FullEmbedding, n, d)


CHOSEN = [
    # MovieLens-1M's users at 10%: 154,624 bytes. Codes and centroids are those of studies/paper.
    (ScalarQuantizedEmbedding, {}, {"bits": 3}),
    (LowRankEmbedding, {}, {"rank": 6}),
    (SVDEmbedding, {}, {"rank": 6}),
    (HashEmbedding, {}, {"num_buckets": 602, "num_hashes": 2}),
    (QREmbedding, {}, {"num_remainders": 591}),
    (RecJPQEmbedding, {}, {"num_subspaces": 32, "num_centroids": 64, "centroid_dtype": "int8"}),
    (CCEmbedding, {}, {"num_columns": 64, "num_centroids": 8}),
    (AdditiveEmbedding, {}, {"num_codebooks": 17, "num_centroids": 64, "centroid_dtype": "int8"}),
    # What is given stays.
    (HashEmbedding, {"num_hashes": 1}, {"num_buckets": 602, "num_hashes": 1}),
    (QREmbedding, {"operation": "concat"}, {"num_remainders": 1197}),
    (ScalarQuantizedEmbedding, {"granularity": "row"}, {"bits": 2}),
    (RecJPQEmbedding, {"num_centroids": 256}, {"num_subspaces": 16, "num_centroids": 256, "centroid_dtype": "int8"}),
    (CCEmbedding, {"num_columns": 16}, {"num_columns": 16, "num_centroids": 128}),
    (CCEmbedding, {"num_centroids": 16, "clusterings": 2}, {"num_columns": 32, "num_centroids": 16}),
    (AdditiveEmbedding, {"num_codebooks": 8}, {"num_codebooks": 8, "num_centroids": 128, "centroid_dtype": "int8"}),
    (AdditiveEmbedding, {"num_centroids": 16}, {"num_codebooks": 38, "num_centroids": 16, "centroid_dtype": "int8"}),
]


@pytest.mark.parametrize(("layer", "given_options", "expected"), CHOSEN)
def test_what_is_chosen_of_ml_1m(layer: Any, given_options: dict[str, Any], expected: dict[str, Any]) -> None:
    options = layer.within(6040, 64, 154_624, **given_options)
    assert options == expected
    taken = written(layer, 6040, 64, **{**given_options, **options})
    assert (0.65 if given_options else 0.9) * 154_624 < taken <= 154_624


@pytest.mark.parametrize("layer", [*BUY_ONE, *BUY_BITS])
def test_too_few_bytes_name_the_least(layer: Any) -> None:
    with pytest.raises(TooFewBytesError, match=r"100 bytes are too few for 500 ids x 16: the least is [\d,]+ bytes"):
        layer.within(500, 16, 100)


@pytest.mark.parametrize(
    ("layer", "options"),
    [(LowRankEmbedding, {"rank": 8}), (AdditiveEmbedding, {"num_codebooks": 9, "num_centroids": 64})],
)
def test_what_is_given_and_does_not_fit(layer: Any, options: dict[str, Any]) -> None:
    with pytest.raises(TooFewBytesError) as caught:
        layer.within(500, 16, 8000, **options)
    more = {"centroid_dtype": "int8"} if layer is AdditiveEmbedding else {}
    assert caught.value.least == written(layer, 500, 16, **options, **more)
