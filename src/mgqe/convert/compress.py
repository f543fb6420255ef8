"""compress_: swap the embedding modules of any model for quantised ones, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mgqe.checks.inference import outside_inference
from mgqe.checks.names import did_you_mean, errors_about
from mgqe.codec.kmeans import THOROUGH
from mgqe.codec.tiers import Tiers
from mgqe.convert.budget import Evidence, JudgeFn, allocate
from mgqe.convert.calibration import Calibration
from mgqe.convert.decide import Decision, decide, make_layer
from mgqe.convert.find import ModelTable, find_tables
from mgqe.convert.pretrained import adopt
from mgqe.convert.progress import Progress, shown
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
    prefer: str | None = None,
    prefer_tail: bool | None = None,
    calibration: Calibration | None = None,
    queries: Mapping[str, Any] | None = None,
    judge: JudgeFn | None = None,
    progress: Progress | bool | None = None,
) -> CompressReport:
    """Swap the model's ``nn.Embedding`` and ``nn.EmbeddingBag`` modules for quantised ones, in place.

    A table is swapped only if its frozen file takes fewer bytes than its rows. A module at several paths stays one
    module, and modules that share a weight become one. Other modules that hold the weight (an output layer) read the
    layer's ``weight``, the decoded table, from now on. The new layer trains the parameter of the old one, so that
    optimisers that hold it go on; :func:`mgqe.extend_optimizer` adds the codebooks. When an error is raised, the model
    is as it was.

    Args:
        model: any module with embeddings in it. Modules are named by their paths, as in ``model.named_modules()``.
        config: what tables become, with rules by name. Default: :class:`CompressConfig`.
        counts: module path -> how often each id occurs in training (``mgqe.count_ids``), or Tiers. A table without
            counts gets one tier, or, if it is trained and has a budget, tiers by the lengths of its rows.
        filter_fn: called with a module and its path; a table for which it returns False is left as it is.
        init: instead of ``config.init``: "warmup" or "from_weight".
        budget: instead of ``config.budget``: "5%" or 0.05 of the tables' bytes, or bytes, for all tables together.
            Without one, each table whose capacity is left open spends the bytes of its even shape.
        prefer: instead of ``config.prefer``: "speed" or "size", how bytes are spent.
        prefer_tail: instead of ``config.prefer_tail``: True lets every id count alike, however rare it is.
        calibration: from :func:`mgqe.calibrate`, with ``init="from_weight"``: tables with a budget, or whose capacity
            is left open, are planned by what errors in them cost, share the budget by it, and candidates are judged by
            the model's loss on the calibration's batches.
        queries: module path -> floats (n, d), a sample of what the table's rows are multiplied with, which says the
            same of a table that is scored by inner products.
        judge: called as ``judge(model)``, returns how good the model is on validation data, a number, higher is better:
            candidates are judged by it instead of the calibration's loss. It sees the model in eval mode and without
            gradients, with a candidate's rows in place of the trained ones, which are put back, and random draws are
            the same each time. It is called up to 19 times: for six candidates by each of gradients, queries and the
            identity, and for another division of the bytes.
        progress: called with (tables done, tables in all); False for nothing; by default a bar, where there is a
            terminal, and else a line every five seconds.

    Returns:
        a report of what was compressed and what was not, and why; ``print`` it.

    Raises:
        ValueError: there is no table, or the filter or a rule matches none; counts for a module that is no table, or
            of another length; settings that do not fit a table; a calibration, queries or a judge that no table is
            planned by; a judge that returns NaN; rows that are NaN. The message names the module path.

    Example:
        >>> import torch, mgqe
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding(10_000, 64), "day": torch.nn.Embedding(7, 4)})
        >>> print(mgqe.compress_(model, counts={"item": torch.arange(10_000, 0, -1)}))
        table               rows x dim      bytes   frozen
        item               10,000 x 64  2,560,000  314,208   12.3%  at most, planned on its rows when the warm-up ends
        day                      7 x 4        112      607  542.0%  left: codes and centroids would take no fewer bytes
        1 of 2 compressed               2,560,112  314,320   12.3%
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got {type(model).__name__}: pass an instance of nn.Module")
    if config is not None and not isinstance(config, CompressConfig):
        raise TypeError(f"config must be a CompressConfig, got {type(config).__name__}: mgqe.CompressConfig(...)")
    config = config or CompressConfig()
    config = config if init is None else replace(config, init=init)
    config = config if budget is None else replace(config, budget=budget)
    config = config if prefer is None else replace(config, prefer=prefer)
    config = config if prefer_tail is None else replace(config, prefer_tail=prefer_tail)
    if judge is not None and not callable(judge):
        raise TypeError(f"judge must be a function of the model that returns a number, got {type(judge).__name__}")
    evidence = Evidence(calibration, queries or {}, judge)
    tables = find_tables(model)
    evidence.check(tables)
    if not tables:
        raise ValueError(_no_tables(model))
    counts_of_table = _counts_of(tables, counts or {})
    chosen = [t for t in tables if filter_fn is None or any(filter_fn(t.module, path) for path in t.paths)]
    if not chosen:
        raise ValueError(f"filter_fn matches none of the model's tables: {_listed(tables)}")
    _check_rules(config, tables)
    evidence.check_use(chosen, config, counts_of_table)

    with shown(progress, "compressing tables") as step:
        step(0, len(chosen))
        plans = allocate(model, chosen, config, counts_of_table, evidence)
        decisions: list[tuple[ModelTable, Decision]] = []
        for table in tables:
            if table not in chosen:
                decisions.append((table, Decision(why="left: filter_fn")))
                continue
            with errors_about(table.path):
                decision = decide(table, config, counts_of_table.get(table.path), plans.get(table.path))
                decisions.append((table, decision))
        # All layers are made before the first is swapped, so that an error leaves the model as it was.
        layers = []
        done = len(chosen) - sum(decision.compress for _, decision in decisions)
        for table, decision in decisions:
            if decision.compress:
                layers.append((table, _make(table, decision)))
                step(done := done + 1, len(chosen))
    for table, layer in layers:
        _swap(table, layer)
    adopt(model)
    report = CompressReport(
        tuple(_row(table, decision, counts_of_table.get(table.path)) for table, decision in decisions)
    )
    if not layers:
        reasons = "; ".join(f"{row.path}: {row.why}" for row in report.rows)
        warnings.warn(f"compress_ left every table as it is: {reasons}", stacklevel=3)  # beyond the decorator
    return report


def _make(table: ModelTable, decision: Decision) -> MGQEmbedding | MGQEmbeddingBag:
    with errors_about(table.path):
        layer = make_layer(table, decision)
        if decision.fitted is not None:
            layer.adopt_plan(decision.fitted)
        if decision.config is not None and decision.config.init == "from_weight":
            layer.start_quantizing(THOROUGH)
    return layer


def _swap(table: ModelTable, layer: MGQEmbedding | MGQEmbeddingBag) -> None:
    for parent, name in table.slots:
        parent._modules[name] = layer
    for module, name, _ in table.ties:
        module._parameters[name] = layer.raw_weight  # not the old parameter where that one could not be trained
        tie(module, name, layer)


def _counts_of(tables: list[ModelTable], counts: Mapping[str, Counts | Tiers]) -> dict[str, Counts | Tiers]:
    """The counts by the first path of each table."""
    first = {path: table.path for table in tables for path in table.paths}
    by_table: dict[str, Counts | Tiers] = {}
    path_of: dict[str, str] = {}
    for path, values in counts.items():
        if path not in first:
            raise ValueError(
                f"counts for {path!r}{did_you_mean(path, first)}, where the model has no table: {_listed(tables)}"
            )
        if first[path] in by_table:
            raise ValueError(
                f"counts for {path_of[first[path]]!r} and for {path!r}, which are one table: "
                "give their sum once, mgqe.merge_counts(...)"
            )
        by_table[first[path]], path_of[first[path]] = values, path
    return by_table


def _check_rules(config: CompressConfig, tables: list[ModelTable]) -> None:
    matching = {pattern for table in tables for pattern in config.rules if config.matches(pattern, table.paths)}
    if unused := [pattern for pattern in config.rules if pattern not in matching]:
        raise ValueError(f"rule {unused[0]!r} matches none of the model's tables: {_listed(tables)}")


def _row(table: ModelTable, decision: Decision, counts: Counts | Tiers | None) -> TableReport:
    weight = table.module._parameters.get("weight")
    return TableReport(
        table.path,
        table.paths[1:],
        int(table.module.num_embeddings),  # type: ignore[arg-type]
        int(table.module.embedding_dim),  # type: ignore[arg-type]
        weight.nbytes if isinstance(weight, torch.Tensor) else 0,
        decision.bytes_after,
        decision.compress,
        decision.why,
        decision.lookup_share(int(table.module.embedding_dim), counts),  # type: ignore[arg-type]
    )


def _listed(tables: list[ModelTable]) -> str:
    return ", ".join(path for table in tables for path in table.paths)


def _no_tables(model: nn.Module) -> str:
    name = type(model).__name__
    swapped = quantized_layers(model)
    if swapped:
        paths = ", ".join(path for path, module in model.named_modules() if module in swapped)
        return f"{name} has no nn.Embedding or nn.EmbeddingBag left to compress; quantised already: {paths}"
    return f"{name} has no nn.Embedding or nn.EmbeddingBag module, so there is nothing to compress"
