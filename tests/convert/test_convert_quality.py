"""Right after compress_(init="from_weight") without training: at least as good as faiss PQ of about the same bytes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mgqe


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Rows with clusters of unequal size in each subspace, and noise."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(16, 32, generator=generator)
    centres = torch.randn(100, 16, generator=generator)[(100 * torch.rand(6000, generator=generator) ** 2).long()]
    return (centres + 0.5 * torch.randn(6000, 16, generator=generator)) @ basis


def compressed(rows: torch.Tensor, counts: torch.Tensor | None = None, **settings) -> tuple[int, torch.Tensor]:
    model = nn.Sequential(nn.Embedding.from_pretrained(rows, freeze=False))
    torch.manual_seed(0)
    counts_of_table = None if counts is None else {"0": counts}
    report = mgqe.compress_(model, mgqe.CompressConfig(**settings), counts=counts_of_table, init="from_weight")
    return report.bytes_after, mgqe.freeze_(model)["0"].to_dense()


def faiss_pq(rows: torch.Tensor, subspaces: int, bits: int) -> tuple[int, torch.Tensor]:
    faiss = pytest.importorskip("faiss")
    quantizer = faiss.ProductQuantizer(rows.shape[1], subspaces, bits)
    quantizer.cp.min_points_per_centroid = 1
    quantizer.train(rows.numpy())
    codes = quantizer.compute_codes(rows.numpy())
    return codes.nbytes + 4 * quantizer.centroids.size(), torch.from_numpy(quantizer.decode(codes))


def error(rows: torch.Tensor, decoded: torch.Tensor) -> float:
    return float((rows - decoded).square().sum() / rows.square().sum())


@pytest.mark.parametrize(("subspaces", "bits"), [(16, 6), (8, 8), (4, 6)])
def test_one_tier_against_faiss(rows, subspaces, bits):
    faiss_nbytes, expected = faiss_pq(rows, subspaces, bits)
    nbytes, decoded = compressed(rows, num_subspaces=subspaces, num_centroids=2**bits)
    assert nbytes - faiss_nbytes < 1000  # the header
    assert error(rows, decoded) <= error(rows, expected)


def test_tiers_with_int8_centroids_against_faiss_of_nearly_as_many_bytes(rows):
    """Rows of an embedding that was trained: frequent ids are longer. A quarter less error for 4% more bytes
    and the file's checksums."""
    counts = (10_000 / torch.arange(1, len(rows) + 1)).long() + 1
    scaled = rows * (0.5 + counts.float().log()[:, None] / 9)
    faiss_nbytes, expected = faiss_pq(scaled, 16, 6)
    nbytes, decoded = compressed(scaled, counts, num_centroids=(256, 64), centroid_dtype="int8")
    assert nbytes <= 1.045 * faiss_nbytes
    assert error(scaled, decoded) <= 0.75 * error(scaled, expected)
