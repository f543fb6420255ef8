"""Kernels for GPUs, in Triton; imported where tensors are on one. :mod:`mgqe.ops.reference` has their twins.

They are launched for any number of rows without being compiled again. With TRITON_INTERPRET=1 in the environment before
the first import they run on the CPU, slowly: that is how they are tested without a GPU.
"""

from mgqe.ops.triton_kernels.adagrad import move_all, move_rows
from mgqe.ops.triton_kernels.assign import assign, nearest, scatter
from mgqe.ops.triton_kernels.bag import bag_of_rows
from mgqe.ops.triton_kernels.bag_codes import bag_codes
from mgqe.ops.triton_kernels.ids import admit
from mgqe.ops.triton_kernels.lookup import GpuTable
from mgqe.ops.triton_kernels.rounding import round_subspaces
from mgqe.ops.triton_kernels.search import keep_above
from mgqe.ops.triton_kernels.soft import SoftChoice, choose_softly, soft_gradients
from mgqe.ops.triton_kernels.transform import transform

__all__ = [
    "GpuTable",
    "SoftChoice",
    "admit",
    "assign",
    "bag_codes",
    "bag_of_rows",
    "choose_softly",
    "keep_above",
    "move_all",
    "move_rows",
    "nearest",
    "round_subspaces",
    "scatter",
    "soft_gradients",
    "transform",
]
