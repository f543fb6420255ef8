"""A budget of a baseline, settled before training: `lowrank:budget=5%` is made `lowrank:item.r=2,user.r=3`.

What comes out is a description as one could have written it by hand, so that all that follows knows nothing of budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mgqe.baselines import FullEmbedding, TooFewBytesError
from mgqe.codec.planning.budget import budget_bytes
from mgqe.recsys.models.embeddings import Spec
from mgqe.recsys.tasks.base import TableInfo, Task
from mgqe.recsys.train.budget import ImpossibleBudgetError, in_words
from mgqe.recsys.train.config import TrainConfig


def settle(config: TrainConfig, task: Task) -> TrainConfig:
    """`config` with the options, or the dimensions, that its budget chooses; unchanged where it is not to be settled.

    A budget is a share of the bytes of the run's full tables, or a number of bytes. Tables that stay full are paid
    first. Each of the others gets its share in proportion to its full bytes, but no less than the least that the method
    can do with, and the class's `within` spends it (:mod:`mgqe.baselines.budget`). With `full:budget=`, all tables get
    the same dimensions, the most with which their files fit together.

    Raises:
        ImpossibleBudgetError: (a ValueError) nothing fits; the message names the least.
        ValueError: what is no budget, or options that cannot be.
    """
    if not config.spec.to_settle:
        return config
    spec = _narrowed(config, task) if config.spec.method.narrows else _with_options(config, task)
    return replace(config, embedding=str(spec))


def _narrowed(config: TrainConfig, task: Task) -> Spec:
    """The description with the most dimensions of which the files of all tables fit together."""
    spec, tables = config.spec, task.tables.values()
    budget = spec.shared_budget
    if budget is None:
        raise ValueError(f"embedding {spec}: expected one budget=, since all tables have rows of the same dimensions")
    nbytes = budget_bytes(budget, sum(_full_nbytes(config, info) for info in tables))
    numbers = [spec.dim] if spec.dim is not None else range(config.dim, 0, -1)
    for dim in numbers:
        least = sum(_narrow_nbytes(spec, info, dim) for info in tables)
        if least <= nbytes and _can_have(config, dim):
            return replace(spec.without_budget(), dim=dim)
    raise _impossible(spec, nbytes, least, list(task.tables))


def _narrow_nbytes(spec: Spec, info: TableInfo, dim: int) -> int:
    """Bytes of a full table's file in a run of so many dimensions; fixed ones stay as they are."""
    stored: Any = None if info.fixed else spec.keywords(info.field).get("stored_dtype")
    return FullEmbedding.frozen_nbytes(info.num_embeddings, info.dim_of(dim), stored)


def _can_have(config: TrainConfig, dim: int) -> bool:
    """Whether the model can have rows of so many dimensions."""
    return config.task != "sequential" or dim % config.num_heads == 0


def _with_options(config: TrainConfig, task: Task) -> Spec:
    """The description with the options of each field's tables that fit its share."""
    spec = config.spec
    compact = {path: info for path, info in task.tables.items() if info.fixed is None}
    nbytes = _nbytes_of_each(config, compact, task)
    chosen: dict[str, dict[str, Any]] = {}  # field -> options
    for path, info in compact.items():
        given = _given(spec, info)
        if path in nbytes:
            options = _within(config, info, nbytes[path], given, path)
            chosen[info.field] = {name: value for name, value in options.items() if name not in given}
    settled, first = spec.without_budget(), next(iter(chosen.values()), {})
    if all(options == first for options in chosen.values()) and len(chosen) == len({i.field for i in compact.values()}):
        chosen = {"": first}
    for field, options in chosen.items():
        for name, value in options.items():
            settled = settled.with_option(field, name, value)
    return settled


def _nbytes_of_each(config: TrainConfig, compact: Mapping[str, TableInfo], task: Task) -> dict[str, int]:
    """Path -> what the file of that table may take."""
    spec, full = config.spec, {path: _full_nbytes(config, info) for path, info in task.tables.items()}
    if spec.shared_budget is None:
        budgets: dict[str, Any] = {path: spec.keywords(info.field).get("budget") for path, info in compact.items()}
        return {path: budget_bytes(each, full[path]) for path, each in budgets.items() if each is not None}
    outside = (
        FullEmbedding.frozen_nbytes(info.num_embeddings, info.dim_of(config.embedding_dim))
        for path, info in task.tables.items()
        if path not in compact
    )
    least = {path: _least(config, info) for path, info in compact.items()}
    nbytes = budget_bytes(spec.shared_budget, sum(full.values())) - sum(outside)
    if nbytes < sum(least.values()):
        raise _impossible(spec, nbytes, sum(least.values()), list(compact))
    return shares(nbytes, {path: full[path] for path in compact}, least)


def shares(nbytes: int, sizes: Mapping[str, int], least: Mapping[str, int]) -> dict[str, int]:
    """`nbytes` divided in proportion to `sizes`, but to none less than its `least`, whose sum is no more than that."""
    paid: dict[str, int] = {}
    while True:
        rest = {path: size for path, size in sizes.items() if path not in paid}
        left = nbytes - sum(paid.values())
        proportional = {path: left * size // sum(rest.values()) for path, size in rest.items()}
        short = {path: least[path] for path, share in proportional.items() if share < least[path]}
        if not short:
            return {**paid, **proportional}
        paid.update(short)


def _within(config: TrainConfig, info: TableInfo, nbytes: int, given: dict[str, Any], path: str) -> dict[str, Any]:
    layer: Any = config.spec.method.layer
    try:
        options: dict[str, Any] = layer.within(info.num_embeddings, info.dim_of(config.embedding_dim), nbytes, **given)
    except TooFewBytesError as error:
        raise ImpossibleBudgetError(f"embedding {config.spec}, {path} table: {error}: give a larger budget") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"embedding {config.spec}, {path} table of {info.num_embeddings} ids: {error}") from error
    return options


def _least(config: TrainConfig, info: TableInfo) -> int:
    """Bytes of the smallest file of a table; 0 where the class does not say."""
    layer: Any = config.spec.method.layer
    try:
        layer.within(info.num_embeddings, info.dim_of(config.embedding_dim), 0, **_given(config.spec, info))
    except TooFewBytesError as error:
        return error.least
    except (TypeError, ValueError):  # of a wrong option, which is said when it is chosen
        pass
    return 0


def _given(spec: Spec, info: TableInfo) -> dict[str, Any]:
    """The options that the description has for a table already."""
    return {name: value for name, value in spec.keywords(info.field).items() if name != "budget"}


def _full_nbytes(config: TrainConfig, info: TableInfo) -> int:
    return 4 * info.num_embeddings * info.dim_of(config.dim)


def _impossible(spec: Spec, nbytes: int, least: int, paths: list[str]) -> ImpossibleBudgetError:
    return ImpossibleBudgetError(
        f"embedding {spec}: {nbytes:,} bytes are left for {in_words(paths)}, of which the least is {least:,}: give a "
        "larger budget"
    )
