"""What the tests of export share: layouts, models, batches, and a run in ONNX Runtime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from table_cases import CASES, build
from torch import Tensor, nn

import mgqe
from mgqe import CompactEmbedding, CompactTable, DPQEmbedding, MGQEmbedding

N, DIM = 2000, 16
FREE = {0: torch.export.Dim.DYNAMIC}  # the first axis

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs mgqe[onnx]"
)

THREE = (0.1, 0.3, 0.6)
# Layers as users make them, on top of the layouts of table_cases: name -> their settings.
LAYERS = {
    "6 and 4 bits": {"num_centroids": (64, 16)},
    "8 and 6 bits, float16": {"num_centroids": (256, 64), "centroid_dtype": "float16", "padding_idx": 0},
    "three tiers, 5 bits": {
        "capacity": "subspaces",
        "fractions": THREE,
        "num_subspaces": (8, 4, 2),
        "num_centroids": 32,
    },
    "both": {"capacity": "both", "num_subspaces": (8, 4), "num_centroids": (128, 16), "centroid_dtype": "int8"},
    "both, split": {"capacity": "both", "num_subspaces": (8, 2), "num_centroids": (16, 64), "share_codebook": False},
    "a codebook a tier, int8": {"share_codebook": False, "centroid_dtype": "int8", "num_centroids": (64, 16)},
    "shared by the subspaces": {"share_subspaces": True, "num_centroids": (200, 20), "padding_idx": 7},
    "softmax": {"quantizer": "sx", "num_centroids": (16, 8)},
    "one tier, 9 bits": {"tiers": [3000], "num_centroids": 512},
    "three ranges, 11 bits": {"tiers": [1200, 800, 1000], "num_centroids": (1100, 80, 8)},
}


def layer_table(name: str) -> CompactTable:
    """The frozen table of one of LAYERS: 3,000 ids in no order of frequency, 16 dimensions."""
    settings = dict(LAYERS[name])
    if "tiers" not in settings:
        settings["counts"] = torch.arange(3000) * 7 % 2999 + 1
    torch.manual_seed(0)
    return MGQEmbedding(3000, DIM, **settings).freeze()


LAYOUTS = [c.name for c in CASES if sum(c.sizes)] + list(LAYERS)


def layout(name: str) -> CompactTable:
    """A table by its name in LAYOUTS."""
    case = next((c for c in CASES if c.name == name), None)
    return build(case).table if case else layer_table(name)


def check_rows(rows: Tensor, table: CompactTable) -> None:
    """A portable table's rows: the same bits, or, where a matrix product is added up in any order, up to rounding."""
    expected = table.to_dense()
    if table.config.matrix_dtype is None:
        assert torch.equal(rows, expected)
    else:
        torch.testing.assert_close(rows, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


class TwoTowers(nn.Module):
    """Users, items with padding, and bags of tags, each side through an MLP."""

    def __init__(self, n: int = N) -> None:
        super().__init__()
        self.user = nn.Embedding(n, DIM)
        self.item = nn.Embedding(n, DIM, padding_idx=0)
        self.tags = nn.EmbeddingBag(n, DIM, mode="mean")
        self.left = nn.Sequential(nn.Linear(DIM, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8))
        self.right = nn.Sequential(nn.Linear(2 * DIM, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, users, items, tags, offsets):
        other = torch.cat([self.item(items), self.tags(tags, offsets)], dim=1)
        return (self.left(self.user(users)) * self.right(other)).sum(-1)


def frozen(model: nn.Module, *with_counts: str, **settings) -> nn.Module:
    """The model, compressed and frozen; the tables at the paths given have two tiers and a tier map."""
    torch.manual_seed(0)
    sizes = {path: model.get_submodule(path).num_embeddings for path in with_counts}
    counts = {path: torch.arange(n) * 7 % (n - 1) + 1 for path, n in sizes.items()}
    mgqe.compress_(model, mgqe.CompressConfig(**{"num_centroids": (256, 64), **settings}), counts=counts)
    mgqe.freeze_(model)
    return model


def two_towers(n: int = N, **settings) -> nn.Module:
    torch.manual_seed(1)
    return frozen(TwoTowers(n), "user", "item", **settings)


def batch(size: int, seed: int = 1) -> tuple[Tensor, ...]:
    """Inputs of TwoTowers."""
    generator = torch.Generator().manual_seed(seed)
    users, items = torch.randint(N, (2, size), generator=generator)
    return users, items, torch.randint(N, (3 * size + 1,), generator=generator), torch.arange(size) * 3


def tables_of(model: nn.Module) -> list[CompactTable]:
    """Its distinct tables."""
    found = {id(m.table): m.table for m in model.modules() if isinstance(m, CompactEmbedding)}
    return list(found.values())


def open_onnx(path: Path) -> Callable[..., Tensor]:
    """A file in ONNX Runtime: inputs -> the first output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what tests provoke is not for the screen
    session = onnxruntime.InferenceSession(str(path), options)
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, dict(zip(names, (i.numpy() for i in inputs), strict=True)))[0])

    return run


def one_tier() -> CompactTable:
    """600 ids in 16 dimensions: the smallest graph."""
    torch.manual_seed(0)
    return DPQEmbedding(600, DIM, num_centroids=16).freeze()
