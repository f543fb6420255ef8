"""Metric: how much an error in a row costs, from gradients, from queries, or the same in all directions.

An error e in a row changes the loss by g.e + e^T H e / 2 (g its gradient there, H its Hessian); at the end of training
gradients average to zero, and their second moment E[g g^T], the empirical Fisher information, stands for H, as in
Optimal Brain Surgeon. Where rows are scored by inner products with queries h, the error of a score is <h, e>, whose
mean square is e^T E[h h^T] e: the anisotropic loss of ScaNN without its weights. docs/method.md derives both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.checks.rows import plain_vectors

FLOOR = 1e-2  # of the largest eigenvalue: directions that a sample never saw are not free
ASYMMETRY = 1e-3  # of the largest entry
SOURCES = ("gradients", "queries", "identity")


@dataclass(frozen=True, eq=False)
class Metric:
    """An error e in a row of the table costs e^T M e.

    Attributes:
        matrix: M, float64 (d, d) on the CPU, symmetric and without negative eigenvalues.
        source: one of SOURCES.
        lookups: of gradients: how many vectors were looked up in the batches that they come from; the losses of
            several tables are comparable if they were gathered in the same batches. 0 for other sources.
    """

    matrix: Tensor
    source: str
    lookups: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", _checked(self.matrix))

    @classmethod
    def identity(cls, embedding_dim: int) -> Metric:
        """All directions alike: the squared error of rows."""
        return cls(torch.eye(embedding_dim, dtype=torch.float64, device="cpu"), "identity")

    @classmethod
    def of_queries(cls, queries: Any) -> Metric:
        """E[h h^T] of a sample of what rows are multiplied with: floats (n, d), n at least 1.

        Fewer queries than dimensions leave directions that none of them has; :meth:`root` gives these a small cost.

        Raises:
            TypeError: no numbers. ValueError: no (n, d), no rows, NaN or infinity, or zeros alone.
        """
        rows = plain_vectors(queries, "queries")
        if not rows.is_floating_point():
            raise TypeError(f"queries must be a float tensor or array of shape (n, d), got {rows.dtype}")
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(f"queries must have shape (n, d) with n and d at least 1, got {tuple(rows.shape)}")
        rows = rows.detach().cpu().double()
        if not bool((fine := rows.isfinite().all(1)).all()):
            raise ValueError(f"query {int((~fine).nonzero()[0])} holds NaN or infinity: leave such rows out")
        if not bool(rows.any()):
            raise ValueError("all queries are zeros, so that no error would cost anything: give other queries, or none")
        return cls(rows.T @ rows / len(rows), "queries")

    @property
    def embedding_dim(self) -> int:
        """d."""
        return self.matrix.shape[0]

    def for_rows(self, embedding_dim: int) -> Metric:
        """The same metric, for rows of d numbers; ValueError where it is of rows of another width."""
        if self.embedding_dim == embedding_dim:
            return self
        if self.source == "queries":
            raise queries_of_other_width(self.embedding_dim, embedding_dim)
        raise ValueError(
            f"the metric must be a matrix of shape ({embedding_dim}, {embedding_dim}), as wide as the rows, got "
            f"({self.embedding_dim}, {self.embedding_dim}): measure it with mgqe.calibrate on the model whose rows "
            "these are"
        )

    def equal_costs(self, rows: Tensor) -> Tensor:
        """Rows r (n, d) in their own directions, each as long as it takes for r^T M r to be the median of all rows'.

        Rows of zeros, and others that cost nothing, stay as they are.
        """
        costs = torch.einsum("ni,ij,nj->n", rows.double(), self.matrix.to(rows.device), rows.double())
        median = costs[costs > 0].median() if bool((costs > 0).any()) else costs.new_ones(())
        scale = torch.where(costs > 0, (median / costs.clamp_min(torch.finfo(torch.float64).tiny)).sqrt(), 1.0)
        return (rows.double() * scale[:, None]).to(rows.dtype)

    def root(self, floor: float = FLOOR) -> np.ndarray:
        """L (d, d) with L L^T = M, after eigenvalues are raised to at least ``floor`` times the largest."""
        values, vectors = np.linalg.eigh(self.matrix.numpy())
        root: np.ndarray = vectors * np.sqrt(np.maximum(values, floor * values.max()))
        return root


def queries_of_other_width(came: int, embedding_dim: int) -> ValueError:
    """The error of queries that rows of ``embedding_dim`` numbers cannot be multiplied with."""
    return ValueError(
        f"queries must have shape (n, {embedding_dim}), as many dimensions as rows, got (n, {came}): give a sample of "
        "the vectors that these rows are multiplied with"
    )


def _checked(matrix: Tensor) -> Tensor:
    """A metric's matrix as float64 on the CPU, made exactly symmetric.

    Raises:
        ValueError: not square, not symmetric, NaN, zeros alone, or an error that would gain something.
    """
    values = torch.as_tensor(matrix).detach().cpu().double()
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape[0] == 0:
        raise ValueError(f"a metric must be a matrix of shape (d, d), got {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError("the metric holds NaN or infinity: gradients that are not finite must be left out")
    peak = float(values.abs().max())
    if peak == 0:
        raise ValueError("the metric is zero, so that no error would cost anything: use Metric.identity(d)")
    if float((values - values.T).abs().max()) > ASYMMETRY * peak:
        raise ValueError("a metric must be symmetric: the mean of g g^T over gradients g, or of h h^T over queries h")
    values = (values + values.T) / 2
    if float(torch.linalg.eigvalsh(values / peak).min()) < -ASYMMETRY:
        raise ValueError("a metric must have no negative eigenvalues: with this one some errors would gain something")
    return values
