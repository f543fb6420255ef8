"""The settings of a run's model."""

from __future__ import annotations

from dataclasses import dataclass

from mgqe.checks.scalars import as_int
from mgqe.recsys.models.embeddings import Spec
from mgqe.recsys.models.methods import METHODS

LOSSES = {  # of each task; the first is the default
    "ranking": ("bce", "bpr", "softmax", "ce"),
    "sequential": ("bce", "softmax", "ce"),
    "ctr": ("bce",),
}
HIDDEN = (128, 64)  # units of the layers of networks for app installs and clicks
WINDOWS = ("last", "random", "all")


@dataclass(frozen=True)
class ModelSettings:
    """A model, its task and its embeddings.

    embedding: a description as in mgqe.recsys.models.embeddings. dim: d, unless the description has one.
    loss: one of those of its task, see RankingTask and SequentialTask.
    max_length, num_blocks, num_heads, windows: of sequential models, see SequentialTask and SASRec.
    mlp_layers: the layers of NeuMF's network. NeuMF has two tables of d dimensions per user or item.
    graph_layers: how often LightGCN propagates its rows; 0 is matrix factorisation.
    hidden: units of the layers of the network of a model for task "ctr", as in 128/64. cross_layers: of DCNV2.
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
    graph_layers: int = 3
    hidden: str = "/".join(map(str, HIDDEN))
    cross_layers: int = 3

    def __post_init__(self) -> None:
        for name in ("dim", "max_length", "num_blocks", "num_heads", "mlp_layers", "cross_layers"):
            as_int(name, getattr(self, name), 1)
        as_int("graph_layers", self.graph_layers, 0)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be 0 or more and below 1, got {self.dropout}")
        if self.task in LOSSES:
            check_loss("loss", self.loss, self.task)
        if self.windows not in WINDOWS:
            raise ValueError(f"windows must be one of {', '.join(WINDOWS)}, got {self.windows!r}")
        if not all(units.isascii() and units.isdigit() and int(units) for units in self.hidden.split("/")):
            raise ValueError(f"hidden must be the units of each layer, as in 128/64, got {self.hidden!r}")
        spec = self.spec  # an error says what is wrong with the description
        if self.model == "lightgcn":
            check_propagated(spec)

    @property
    def hidden_units(self) -> tuple[int, ...]:
        """The units of each layer."""
        return tuple(map(int, self.hidden.split("/")))

    @property
    def spec(self) -> Spec:
        return Spec.parse(self.embedding)

    @property
    def embedding_dim(self) -> int:
        """d of this run: that of the description, else that of the configuration."""
        return self.spec.dim or self.dim


def check_loss(name: str, loss: str, task: str) -> None:
    """ValueError unless the setting `name` is a loss of the task."""
    if loss not in LOSSES[task]:
        raise ValueError(f"{name} must be one of {', '.join(LOSSES[task])} for --task {task}, got {loss!r}")


def check_propagated(spec: Spec) -> None:
    """ValueError for an embedding that cannot hold LightGCN's propagated rows, since it has none of its own."""
    holding = [name for name, method in METHODS.items() if name == "full" or method.kind != "trained"]
    if spec.name not in holding:
        raise ValueError(
            f"--model lightgcn serves the rows that it propagated over the graph, and {spec.name} has no rows to keep "
            f"these in: give one of {', '.join(holding)}, or --model mf for {spec.name}"
        )
