"""The settings of a run's model."""

from __future__ import annotations

from dataclasses import dataclass

from mgqe.recsys.models.embeddings import Spec


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

    @property
    def spec(self) -> Spec:
        return Spec.parse(self.embedding)

    @property
    def embedding_dim(self) -> int:
        """d of this run: that of the description, else that of the configuration."""
        return self.spec.dim or self.dim
