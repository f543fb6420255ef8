"""Baselines with nn.Embedding's signature and a ``freeze()``, so that comparisons count bytes in the same way.

A full table with a smaller d is ``FullEmbedding`` with a smaller ``embedding_dim``.
"""

from mgqe.baselines.additive import AdditiveEmbedding, AdditiveTable
from mgqe.baselines.budget import TooFewBytesError
from mgqe.baselines.cce import CCEmbedding, CCETable
from mgqe.baselines.full import FullEmbedding, FullTable
from mgqe.baselines.hashing import HashEmbedding, HashTable
from mgqe.baselines.low_rank import LowRankEmbedding, LowRankTable
from mgqe.baselines.pq import PQEmbedding
from mgqe.baselines.quotient_remainder import QREmbedding, QRTable
from mgqe.baselines.recjpq import RecJPQEmbedding
from mgqe.baselines.scalar import ScalarQuantizedEmbedding, ScalarTable
from mgqe.baselines.svd import SVDEmbedding

__all__ = [
    "AdditiveEmbedding",
    "AdditiveTable",
    "CCETable",
    "CCEmbedding",
    "FullEmbedding",
    "FullTable",
    "HashEmbedding",
    "HashTable",
    "LowRankEmbedding",
    "LowRankTable",
    "PQEmbedding",
    "QREmbedding",
    "QRTable",
    "RecJPQEmbedding",
    "SVDEmbedding",
    "ScalarQuantizedEmbedding",
    "ScalarTable",
    "TooFewBytesError",
]
