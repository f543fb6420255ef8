"""The settings of a run's model."""

from __future__ import annotations

from dataclasses import dataclass

from mgqe.checks.scalars import as_int
from mgqe.recsys.models.embeddings import Spec

LOSSES = ("bce", "softmax", "ce")  # of sequential models
WINDOWS = ("last", "random", "all")


@dataclass(frozen=True)
class ModelSettings:
    """A model, its task and its embeddings.

    embedding: a description as in mgqe.recsys.models.embeddings. dim: d, unless the description has one.
    max_length, num_blocks, num_heads, loss, windows: of sequential models, see SequentialTask and SASRec.
    mlp_layers: the layers of NeuMF's network. NeuMF has two tables of d dimensions per user or item.
    """

    task: str = "ranking"
    model: str = "gmf"
    embedding: str = "mgqe"
    dim: int = 64
    dropout: float = 0.0
    max_length: int = 50
    num_blocks: int = 2
    num_heads: int = 1
    loss: str = "bce"
    windows: str = "last"
    mlp_layers: int = 3

    def __post_init__(self) -> None:
        for name in ("dim", "max_length", "num_blocks", "num_heads", "mlp_layers"):
            as_int(name, getattr(self, name), 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be 0 or more and below 1, got {self.dropout}")
        for name, known in (("loss", LOSSES), ("windows", WINDOWS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        Spec.parse(self.embedding)

    @property
    def spec(self) -> Spec:
        return Spec.parse(self.embedding)

    @property
    def embedding_dim(self) -> int:
        """d of this run: that of the description, else that of the configuration."""
        return self.spec.dim or self.dim
