"""A data set of a few hundred interactions, for tests that train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mgqe.recsys.data.datasets import planted
from mgqe.recsys.train.config import TrainConfig

TINY = TrainConfig(
    embedding="full",
    seed=3,
    dim=8,
    batch_size=256,
    max_epochs=3,
    patience=2,
    anneal_epochs=2,
    quantised_epochs=4,
    quantised_learning_rate=0.01,
    learning_rate=0.01,
    eval_negatives=20,
)


def write_tiny(folder: Path, num_users: int = 60, num_items: int = 80) -> Path:
    """Write the set as a file of `user item` rows."""
    data = planted(num_users=num_users, num_items=num_items, rank=3, per_user=12)
    path = folder / "tiny.txt"
    path.write_text("".join(f"{user} {item}\n" for user, item in zip(data.users.tolist(), data.items.tolist())))
    return path


def tiny_config(path: Path, **changes: object) -> TrainConfig:
    """TINY on the file `path`."""
    return replace(TINY, data=str(path), **changes)  # type: ignore[arg-type]
