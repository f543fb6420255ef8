"""The operations that training and look-up spend their time in.

Each is a Python function here, a native kernel (CPU, float32), for some a kernel for GPUs
(:mod:`mgqe.ops.triton_kernels`), a pure-torch twin for every other case (:mod:`mgqe.ops.reference`), and, where its
shapes allow it, a ``torch.ops.mgqe`` operator with a fake kernel, so that ``torch.compile(fullgraph=True)`` works.
"""

from mgqe.ops._adagrad import adagrad_all, adagrad_rows
from mgqe.ops._admit import admit
from mgqe.ops._assign import assign
from mgqe.ops._assign_mixed import assign_mixed
from mgqe.ops._bag import bag, bag_of_rows, check_bags
from mgqe.ops._by_tier import quantize_by_tier, quantizes_by_tier, row_weights, scatter_by_tier
from mgqe.ops._descriptor import TableBuffers
from mgqe.ops._gather import decode_error, gather, scatter
from mgqe.ops._in_graph import quantize_in_graph, transform_in_graph
from mgqe.ops._large_pages import empty_in_large_pages, join_in_large_pages
from mgqe.ops._library import native_available, native_isa, native_openmp, set_native_isa
from mgqe.ops._lookup import PreparedLookup, lookup, max_code
from mgqe.ops._mixed_coder import MixedCoder
from mgqe.ops._quantize_mixed import quantize_mixed, scatter_mixed
from mgqe.ops._round import round_subspaces
from mgqe.ops._soft import choose_softly, soft_gradients
from mgqe.ops._soft_in_graph import choose_softly_in_graph
from mgqe.ops._sum_rows import sum_rows
from mgqe.ops._topk import METHODS as TOPK_METHODS
from mgqe.ops._topk import bias_levels, topk
from mgqe.ops._topk_job import BiasLevels, IdLists, TopKJob
from mgqe.ops._transform import transform
from mgqe.ops._unique import unique, unique_by_tier, unique_padded

__all__ = [
    "TOPK_METHODS",
    "BiasLevels",
    "IdLists",
    "MixedCoder",
    "PreparedLookup",
    "TableBuffers",
    "TopKJob",
    "adagrad_all",
    "adagrad_rows",
    "admit",
    "assign",
    "assign_mixed",
    "bag",
    "bag_of_rows",
    "bias_levels",
    "check_bags",
    "choose_softly",
    "choose_softly_in_graph",
    "decode_error",
    "empty_in_large_pages",
    "gather",
    "join_in_large_pages",
    "lookup",
    "max_code",
    "native_available",
    "native_isa",
    "native_openmp",
    "quantize_by_tier",
    "quantize_in_graph",
    "quantize_mixed",
    "quantizes_by_tier",
    "round_subspaces",
    "row_weights",
    "scatter",
    "scatter_by_tier",
    "scatter_mixed",
    "set_native_isa",
    "soft_gradients",
    "sum_rows",
    "topk",
    "transform",
    "transform_in_graph",
    "unique",
    "unique_by_tier",
    "unique_padded",
]
