"""Any model in three lines: compress_, train, freeze_; and a folder to keep the frozen model in."""

from mgqe.convert.compress import compress_
from mgqe.convert.fold import fold_matrix
from mgqe.convert.folder import save_model
from mgqe.convert.freeze import freeze_
from mgqe.convert.load import load_model
from mgqe.convert.optimizer import extend_optimizer
from mgqe.convert.report import CompressReport, TableReport
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.nn.config import CompressConfig

__all__ = [
    "CompactEmbedding",
    "CompactEmbeddingBag",
    "CompressConfig",
    "CompressReport",
    "TableReport",
    "compress_",
    "extend_optimizer",
    "fold_matrix",
    "freeze_",
    "load_model",
    "save_model",
]
