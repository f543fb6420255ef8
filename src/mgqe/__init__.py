"""mgqe: embedding tables 5 to 50 times smaller, by multi-granular quantised embeddings (arXiv 2002.08530)."""

from mgqe.artifact import ArtifactError, load, save
from mgqe.bag import DPQEmbeddingBag, MGQEmbeddingBag
from mgqe.convert import (
    CompactEmbedding,
    CompactEmbeddingBag,
    CompressConfig,
    CompressReport,
    compress_,
    extend_optimizer,
    freeze_,
    load_model,
    save_model,
)
from mgqe.counting import count_ids, merge_counts
from mgqe.embedding import DPQEmbedding, MGQEmbedding
from mgqe.export import export_onnx, portable
from mgqe.freezing import freeze_to
from mgqe.idmap import IdMap
from mgqe.modules import quantization_loss, start_quantizing
from mgqe.planning import Plan, plan
from mgqe.rowwise import RowwiseAdagrad
from mgqe.segments import append
from mgqe.stats import CodebookStats
from mgqe.table import CompactTable
from mgqe.tiers import Tiers
from mgqe.verification import verify

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "CodebookStats",
    "CompactEmbedding",
    "CompactEmbeddingBag",
    "CompactTable",
    "CompressConfig",
    "CompressReport",
    "DPQEmbedding",
    "DPQEmbeddingBag",
    "IdMap",
    "MGQEmbedding",
    "MGQEmbeddingBag",
    "Plan",
    "RowwiseAdagrad",
    "Tiers",
    "append",
    "compress_",
    "count_ids",
    "export_onnx",
    "extend_optimizer",
    "freeze_",
    "freeze_to",
    "load",
    "load_model",
    "merge_counts",
    "plan",
    "portable",
    "quantization_loss",
    "save",
    "save_model",
    "start_quantizing",
    "verify",
]
