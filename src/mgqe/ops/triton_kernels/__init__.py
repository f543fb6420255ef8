"""Kernels for GPUs, in Triton; imported where tensors are on one. :mod:`mgqe.ops.reference` has their twins.

They are launched for any number of rows without being compiled again. With TRITON_INTERPRET=1 in the environment before
the first import they run on the CPU, slowly: that is how they are tested without a GPU.
"""

from mgqe.ops.triton_kernels.assign import assign
from mgqe.ops.triton_kernels.bag import bag_of_rows
from mgqe.ops.triton_kernels.lookup import GpuTable
from mgqe.ops.triton_kernels.transform import transform

__all__ = ["GpuTable", "assign", "bag_of_rows", "transform"]
