"""Frozen models for other runtimes: modules of standard operators, and ONNX files made from them."""

from mgqe.convert.export.onnx_file import export_onnx
from mgqe.convert.export.portable_layers import PortableEmbedding, PortableEmbeddingBag
from mgqe.convert.export.portable_model import portable

__all__ = ["PortableEmbedding", "PortableEmbeddingBag", "export_onnx", "portable"]
