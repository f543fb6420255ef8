"""mgqe: embedding tables 5 to 50 times smaller, by multi-granular quantised embeddings (arXiv 2002.08530)."""

from mgqe import baselines as baselines
from mgqe.codec.planning import Plan, RowsPlan, plan
from mgqe.codec.stats import CodebookStats
from mgqe.codec.tiers import Tiers
from mgqe.collection import Collection
from mgqe.convert import (
    CompactEmbedding,
    CompactEmbeddingBag,
    CompressConfig,
    CompressReport,
    compress_,
    extend_optimizer,
    fold_matrix,
    freeze_,
    load_model,
    save_model,
)
from mgqe.convert.calibration import Calibration, calibrate
from mgqe.convert.export import export_onnx, portable
from mgqe.convert.pictures.bits import plot_bits
from mgqe.convert.pictures.errors import plot_errors
from mgqe.convert.pictures.sizes import plot_sizes
from mgqe.convert.pictures.usage import plot_usage
from mgqe.convert.table import compress_table
from mgqe.convert.table_check import TableCheck, check_table
from mgqe.convert.verification import verify
from mgqe.files.container import ArtifactError
from mgqe.hub import from_pretrained, push_to_hub, save_pretrained
from mgqe.ids import IdMap
from mgqe.ids.counting import count_ids, merge_counts
from mgqe.nn.bag import DPQEmbeddingBag, MGQEmbeddingBag
from mgqe.nn.embedding import DPQEmbedding, MGQEmbedding
from mgqe.nn.freezing_to_file import freeze_to
from mgqe.nn.model import check_ids, one_graph, quantization_loss, start_quantizing
from mgqe.nn.monitor import table_metrics
from mgqe.nn.optim import RowwiseAdagrad
from mgqe.nn.quantization import Quantization
from mgqe.table.appended import append
from mgqe.table.compact import CompactTable
from mgqe.table.io import load, save

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "Calibration",
    "CodebookStats",
    "Collection",
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
    "Quantization",
    "RowsPlan",
    "RowwiseAdagrad",
    "TableCheck",
    "Tiers",
    "append",
    "calibrate",
    "check_ids",
    "check_table",
    "compress_",
    "compress_table",
    "count_ids",
    "export_onnx",
    "extend_optimizer",
    "fold_matrix",
    "freeze_",
    "freeze_to",
    "from_pretrained",
    "load",
    "load_model",
    "merge_counts",
    "one_graph",
    "plan",
    "plot_bits",
    "plot_errors",
    "plot_sizes",
    "plot_usage",
    "portable",
    "push_to_hub",
    "quantization_loss",
    "save",
    "save_model",
    "save_pretrained",
    "start_quantizing",
    "table_metrics",
    "verify",
]
