"""What every embedding class must do, nn.Embedding included; test_contract.py runs it over all of them.

To put another class under the contract, add a :class:`Subject` to SUBJECTS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import mgqe
from mgqe.baselines import (
    AdditiveEmbedding,
    CCEmbedding,
    FullEmbedding,
    HashEmbedding,
    LowRankEmbedding,
    PQEmbedding,
    QREmbedding,
    RecJPQEmbedding,
    ScalarQuantizedEmbedding,
    SVDEmbedding,
)

ROWS, DIM = 50, 8


@dataclass(frozen=True)
class Subject:
    """One embedding class in one configuration and state.

    Attributes:
        name: in the test's id.
        cls: the class.
        options: keyword arguments beyond nn.Embedding's.
        quantizing: bring the layer out of its warm-up first.
        freezes: has ``freeze()``; nn.Embedding has not.
        agreement: how far a look-up may be from the eval-mode forward pass in float32: 0 is bit for bit; else
            the root of the mean squared error over that of the rows.
        half_agreement: the same in bfloat16 and float16, where the two may add in different precisions.
        max_norm: takes nn.Embedding's ``max_norm``.
    """

    name: str
    cls: type[nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    quantizing: bool = False
    freezes: bool = True
    agreement: float = 0.0
    half_agreement: float = 0.0
    max_norm: bool = True

    @property
    def is_torch(self) -> bool:
        """torch's own class, whose errors and dtypes are torch's."""
        return self.cls is nn.Embedding

    def make(self, rows: int = ROWS, dim: int = DIM, seed: int = 0, **more: Any) -> Any:
        """A layer from a seed, in the state that the subject names, in training mode."""
        torch.manual_seed(seed)
        options = {key: value(rows) if isinstance(value, Callable) else value for key, value in self.options.items()}
        layer = self.cls(rows, dim, **{**options, **more})
        if self.quantizing:
            mgqe.start_quantizing(layer)
        return layer


def shuffled_counts(rows: int) -> Tensor:
    """Training counts under which ids are in no order, some never seen."""
    rows = max(rows, 0)  # the layer is to complain of a negative number, not this
    return torch.tensor([(7 * i) % 11 for i in range(rows)]) + (torch.arange(rows) == 0)


def quantised(name: str, cls: type[nn.Module], **options: Any) -> list[Subject]:
    """A quantised class in its warm-up and after it."""
    return [Subject(f"{name}, warm-up", cls, options), Subject(f"{name}, quantised", cls, options, quantizing=True)]


def first_tier_options(rows: int) -> tuple[int, int]:
    """Centroids that tiers of 10% and 90% of so few rows can use."""
    return max(2, min(4, rows // 10)), max(2, min(4, rows))


BUDGET = 4000  # bytes; test_contract.py lets layers have it, though so few rows take less than a file's header
TIERED = {"num_subspaces": 4, "num_centroids": first_tier_options}
SUBJECTS = [
    Subject("nn.Embedding", nn.Embedding, freezes=False),
    Subject("full", FullEmbedding),
    Subject("low rank", LowRankEmbedding, {"rank": 3}, agreement=1e-6, half_agreement=1e-2, max_norm=False),
    Subject("SVD, all of it", SVDEmbedding, {"rank": lambda rows: 8}, agreement=1e-5, half_agreement=1e-2),
    Subject("scalar, 8 bits", ScalarQuantizedEmbedding, {"bits": 8}, agreement=6e-3, half_agreement=6e-3),
    Subject(
        "scalar, 3 bits a row",
        ScalarQuantizedEmbedding,
        {"bits": 3, "granularity": "row"},
        agreement=0.2,
        half_agreement=0.2,
    ),
    Subject(
        "post-training PQ",
        PQEmbedding,
        {"num_subspaces": 4, "num_centroids": lambda rows: max(2, min(16, rows))},
        agreement=0.5,
        half_agreement=0.5,
    ),
    Subject("hash", HashEmbedding, {"num_buckets": 20}, max_norm=False),
    Subject(
        "two hashes",
        HashEmbedding,
        {"num_buckets": 20, "num_hashes": 2, "seed": 3},
        half_agreement=1e-2,
        max_norm=False,
    ),
    *[
        Subject(f"quotient-remainder, {op}", QREmbedding, {"operation": op}, half_agreement=1e-2, max_norm=False)
        for op in ("mult", "add", "concat")
    ],
    *[
        Subject(
            f"RecJPQ, {kind}",
            RecJPQEmbedding,
            {"num_subspaces": 4, "num_centroids": lambda rows: max(2, min(16, rows)), "centroid_dtype": kind},
            max_norm=False,
        )
        for kind in ("float32", "int8")
    ],
    Subject(
        "CCE",
        CCEmbedding,
        {"num_columns": 2, "num_centroids": lambda rows: max(1, min(12, rows))},
        half_agreement=1e-2,
        max_norm=False,
    ),
    *[
        Subject(
            f"additive, {kind}",
            AdditiveEmbedding,
            {"num_codebooks": 3, "num_centroids": lambda rows: max(1, min(12, rows)), "centroid_dtype": kind},
            max_norm=False,
        )
        for kind in ("float32", "float16", "int8")
    ],
    *quantised("MGQE", mgqe.MGQEmbedding, counts=shuffled_counts, **TIERED),
    *quantised("MGQE in frequency order", mgqe.MGQEmbedding, tiers=mgqe.Tiers.from_fractions, **TIERED),
    *quantised(
        "MGQE, fewer subspaces",
        mgqe.MGQEmbedding,
        counts=shuffled_counts,
        capacity="subspaces",
        num_subspaces=(4, 2),
        num_centroids=lambda rows: max(2, min(4, rows // 10)),
    ),
    *quantised("MGQE, a codebook a tier", mgqe.MGQEmbedding, counts=shuffled_counts, share_codebook=False, **TIERED),
    *quantised("MGQE, int8", mgqe.MGQEmbedding, counts=shuffled_counts, centroid_dtype="int8", **TIERED),
    *quantised("MGQE, SX", mgqe.MGQEmbedding, counts=shuffled_counts, quantizer="sx", **TIERED),
    *quantised("MGQE, budget", mgqe.MGQEmbedding, counts=shuffled_counts, budget=BUDGET),
    *quantised("DPQ, budget", mgqe.DPQEmbedding, budget=BUDGET),
    *quantised("DPQ", mgqe.DPQEmbedding, num_subspaces=4, num_centroids=lambda rows: max(2, min(6, rows))),
    *quantised(
        "DPQ, one codebook for all subspaces",
        mgqe.DPQEmbedding,
        num_subspaces=4,
        num_centroids=lambda rows: max(2, min(16, rows)),
        share_subspaces=True,
    ),
]


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Root of the mean squared error over that of the expected rows; 0 if both are equal, empty included."""
    if torch.equal(got, expected):
        return 0.0
    error = (got.double() - expected.double()).square().sum()
    return float((error / expected.double().square().sum()).sqrt())


def gradient_sizes(layer: nn.Module) -> list[float]:
    """The largest gradient of each parameter, 0 where there is none."""
    found = []
    for parameter in layer.parameters():
        grad = parameter.grad
        if grad is None or grad.numel() == 0:
            found.append(0.0)
        else:
            found.append(float(grad.to_dense().abs().max()))
    return found
