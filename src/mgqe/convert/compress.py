"""compress_: swap the embedding modules of any model for quantised ones, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from mgqe.checks.inference import outside_inference
from mgqe.checks.names import did_you_mean
from mgqe.codec.kmeans import THOROUGH
from mgqe.codec.tiers import Tiers
from mgqe.convert.budget import allocate
from mgqe.convert.decide import Decision, decide, make_layer
from mgqe.convert.find import FoundTable, find_tables
from mgqe.convert.report import CompressReport, TableReport
from mgqe.convert.tied import tie
from mgqe.nn.bag import MGQEmbeddingBag
from mgqe.nn.config import CompressConfig
from mgqe.nn.embedding import MGQEmbedding
from mgqe.nn.model import quantized_layers
from mgqe.nn.quantization import Counts

FilterFn = Callable[[nn.Module, str], bool]


@outside_inference
def compress_(
    model: nn.Module,
    config: CompressConfig | None = None,
    *,
    counts: Mapping[str, Counts | Tiers] | None = None,
    filter_fn: FilterFn | None = None,
    init: str | None = None,
    budget: int | float | str | None = None,
) -> CompressReport:
    """Swap the model's ``nn.Embedding`` and ``nn.EmbeddingBag`` modules for quantised ones, in place.

    A table is swapped only if its frozen file takes fewer bytes than its rows. A module at several paths stays one
    module, and modules that share a weight become one; what else holds the weight (an output layer) reads the layer's
    ``weight`` from now on, the decoded table. The new layer trains the very parameter of the old one: optimisers that
    hold it go on, and :func:`mgqe.extend_optimizer` adds the codebooks. If anything is refused, the model is as it was.

    Args:
        model: any module with embeddings in it; modules are known by their paths, as in ``model.named_modules()``.
        config: what tables become, with rules by name. Default: :class:`CompressConfig`.
        counts: module path -> how often each id occurs in training (``mgqe.count_ids``), or Tiers. A table without
            them gets one tier.
        filter_fn: called with a module and its path; False leaves it. Default: all.
        init: instead of ``config.init``: "warmup" or "from_weight".
        budget: instead of ``config.budget``: "5%" or 0.05 of the tables' bytes, or bytes, for all tables together.

    Returns:
        what was compressed and what was not, and why: ``print`` it.

    Raises:
        ValueError: there is no table, or the filter or a rule matches none; counts for a module that is no table, or
            of another length; settings that do not fit a table; rows that are NaN. The message names the module path.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got {type(model).__name__}: pass an instance of nn.Module")
    if config is not None and not isinstance(config, CompressConfig):
        raise TypeError(f"config must be a CompressConfig, got {type(config).__name__}: mgqe.CompressConfig(...)")
    config = config or CompressConfig()
    config = config if init is None else replace(config, init=init)
    config = config if budget is None else replace(config, budget=budget)
    tables = find_tables(model)
    if not tables:
        raise ValueError(_no_tables(model))
    given = _counts_of(tables, counts or {})
    chosen = [t for t in tables if filter_fn is None or any(filter_fn(t.module, path) for path in t.paths)]
    if not chosen:
        raise ValueError(f"filter_fn matches none of the model's tables: {_listed(tables)}")
    _check_rules(config, tables)

    budgeted = allocate(chosen, config, given, _naming)
    decisions: list[tuple[FoundTable, Decision]] = []
    for table in tables:
        if table not in chosen:
            decisions.append((table, Decision(why="left: filter_fn")))
            continue
        with _naming(table):
            decisions.append((table, decide(table, config, given.get(table.path), budgeted.get(table.path))))
    # All are made before the first is swapped, so that an error leaves the model alone.
    made = [(table, _make(table, decision)) for table, decision in decisions if decision.compress]
    for table, layer in made:
        _swap(table, layer)
    report = CompressReport(tuple(_row(table, decision) for table, decision in decisions))
    if not made:
        reasons = "; ".join(f"{row.path}: {row.why}" for row in report.rows)
        warnings.warn(f"compress_ left every table as it is: {reasons}", stacklevel=3)  # beyond the decorator
    return report


def _make(table: FoundTable, decide: Decision) -> MGQEmbedding | MGQEmbeddingBag:
    with _naming(table):
        layer = make_layer(table, decide)
        if decide.config is not None and decide.config.init == "from_weight":
            layer.start_quantizing(THOROUGH)
    return layer


def _swap(table: FoundTable, layer: MGQEmbedding | MGQEmbeddingBag) -> None:
    for parent, name in table.places:
        parent._modules[name] = layer
    for module, name, _ in table.ties:
        module._parameters[name] = layer.raw_weight  # another one where the old one could not be trained
        tie(module, name, layer)


@contextmanager
def _naming(table: FoundTable) -> Iterator[None]:
    """Puts a table's path before what is wrong with it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{table.path}: {error}") from error


def _counts_of(tables: list[FoundTable], counts: Mapping[str, Counts | Tiers]) -> dict[str, Counts | Tiers]:
    """Counts by the first path of each table."""
    first = {path: table.path for table in tables for path in table.paths}
    found: dict[str, Counts | Tiers] = {}
    named: dict[str, str] = {}
    for path, values in counts.items():
        if path not in first:
            raise ValueError(
                f"counts for {path!r}{did_you_mean(path, first)}, where the model has no table: {_listed(tables)}"
            )
        if first[path] in found:
            raise ValueError(
                f"counts for {named[first[path]]!r} and for {path!r}, which are one table: "
                "give their sum once, mgqe.merge_counts(...)"
            )
        found[first[path]], named[first[path]] = values, path
    return found


def _check_rules(config: CompressConfig, tables: list[FoundTable]) -> None:
    used = {pattern for table in tables for pattern in config.rules if config.matches(pattern, table.paths)}
    if unused := [pattern for pattern in config.rules if pattern not in used]:
        raise ValueError(f"rule {unused[0]!r} matches none of the model's tables: {_listed(tables)}")


def _row(table: FoundTable, decide: Decision) -> TableReport:
    weight = table.module._parameters.get("weight")
    return TableReport(
        table.path,
        table.paths[1:],
        int(table.module.num_embeddings),  # type: ignore[arg-type]
        int(table.module.embedding_dim),  # type: ignore[arg-type]
        weight.nbytes if isinstance(weight, torch.Tensor) else 0,
        decide.bytes_after,
        decide.compress,
        decide.why,
    )


def _listed(tables: list[FoundTable]) -> str:
    return ", ".join(path for table in tables for path in table.paths)


def _no_tables(model: nn.Module) -> str:
    name = type(model).__name__
    swapped = quantized_layers(model)
    if swapped:
        paths = ", ".join(path for path, module in model.named_modules() if module in swapped)
        return f"{name} has no nn.Embedding or nn.EmbeddingBag left to compress; quantised already: {paths}"
    return f"{name} has no nn.Embedding or nn.EmbeddingBag module, so there is nothing to compress"
