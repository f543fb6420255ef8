"""Axes: the coordinates in which a table's rows are coded, chosen by what an error costs.

With a metric M = L L^T an error e costs |e L|^2. So rows are taken to x L, and turned there to the eigenvectors of
their covariance: the coordinates are uncorrelated, errors in them add up, and they are sorted by how much there is to
lose in each (the Karhunen-Loeve transform of transform coding; OPQ chooses a rotation for M = I).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgqe.codec.metric import FLOOR, Metric


@dataclass(frozen=True, eq=False)
class Axes:
    """Coordinates z = (x - mean) @ encoder of rows x, and x = mean + z @ decoder back; all float64.

    Attributes:
        mean: (d,), the weighted mean of the rows.
        encoder: (d, d). decoder: (d, d), its inverse; the rows of the decoder have a mean square of 1 / d each, so that
            coordinates are about as large as the numbers of rows.
        cost: what an error of one unit in any coordinate costs in the metric: e^T M e = cost * |error in z|^2.
    """

    mean: np.ndarray
    encoder: np.ndarray
    decoder: np.ndarray
    cost: float

    @classmethod
    def of(cls, rows: np.ndarray, weights: np.ndarray, metric: Metric) -> Axes:
        """Of rows (n, d), weighted by (n,), in a metric of d dimensions."""
        total = weights.sum() or 1.0  # a table without rows has no weights
        mean = weights @ rows / total
        root = metric.root()
        centred = (rows - mean) @ root
        covariance = (centred * weights[:, None]).T @ centred / total
        _, vectors = np.linalg.eigh(covariance)
        vectors = vectors[:, ::-1]  # the largest variance first
        encoder, decoder = root @ vectors, vectors.T @ np.linalg.inv(root)
        unit = np.sqrt((decoder**2).sum() / len(decoder))
        return cls(mean, encoder * unit, decoder / unit, float(unit**-2))

    @classmethod
    def own(cls, rows: np.ndarray, weights: np.ndarray, metric: Metric) -> Axes:
        """The rows' own axes, in units of what an error in each costs.

        e^T M e is M_11 e_1^2 + M_22 e_2^2 + ... on average if errors of different numbers have nothing to do with each
        other, as those of codes of single numbers.
        """
        mean = weights @ rows / (weights.sum() or 1.0)
        costs = metric.matrix.numpy().diagonal()
        units = np.sqrt(np.maximum(costs, FLOOR * costs.max()))
        unit = np.sqrt((units**-2).mean())
        return cls(mean, np.diag(units * unit), np.diag(1.0 / (units * unit)), float(unit**-2))

    def coordinates(self, rows: np.ndarray) -> np.ndarray:
        """z of rows (n, d)."""
        result: np.ndarray = (rows - self.mean) @ self.encoder
        return result


def flatness(rows: np.ndarray, weights: np.ndarray) -> float:
    """How alike the variances of rows (n, d), weighted by (n,), are in all directions: from 0, and 1 if all are equal.

    It is the geometric mean of the covariance's eigenvalues over their mean, which is what bits that follow the
    variances leave of the error of equal bits.
    """
    total = weights.sum() or 1.0
    centred = rows - weights @ rows / total
    variances = np.linalg.eigvalsh((centred * weights[:, None]).T @ centred / total)
    if variances[0] <= 0:
        return 0.0
    return float(np.exp(np.log(variances).mean()) / variances.mean())
