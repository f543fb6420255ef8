"""The tables of a model, and the gradients of the vectors that a batch looks up in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.convert.decide import obstacle
from mgqe.convert.find import find_tables, is_embedding
from mgqe.nn.bag import MGQEmbeddingBag
from mgqe.nn.context.ddp import recomputing
from mgqe.nn.metric import Lookups, lookups_of_bags, lookups_of_rows, lookups_of_vectors, second_moment
from mgqe.nn.quantized import QuantizedEmbedding

SAMPLE = 65_536  # vectors of a pass whose gradients are read


@dataclass(eq=False)
class CalibratedTable:
    """One table, and what was gathered of it.

    Attributes:
        path: its first path in the model.
        modules: that look rows up in it.
        parameter: its rows, which output layers may read as well; None where the parameter has another form.
        padding_idx: the id that trains nothing.
        moment: float64 (d, d), the sum of g g^T.
        lookups: how many they are.
        is_used: whether a batch had ids of it, or read the parameter.
    """

    path: str
    modules: tuple[Any, ...]
    parameter: Tensor | None
    padding_idx: int | None
    moment: Tensor
    lookups: float = 0.0
    is_used: bool = False


@dataclass
class TablePass:
    """One call of a table's module: its vectors, cut off from the table, and which of them count."""

    table: CalibratedTable
    vectors: Tensor
    lookups: Lookups


def tables_of(model: nn.Module) -> list[CalibratedTable]:
    """The tables that could be compressed, and the quantised layers.

    Raises:
        ValueError: there are none.
    """
    if is_embedding(model):
        return [_table("", (model,), model._parameters.get("weight"))]
    plain = [table for table in find_tables(model) if obstacle(table) is None]
    tables = [_table(table.path, (table.module, *table.others), table.module._parameters["weight"]) for table in plain]
    for path, module in model.named_modules():
        if isinstance(module, QuantizedEmbedding):
            # Once the codebooks have started, what reads `weight` gives the rows the gradient that it is trained with.
            tables.append(_table(path, (module,), module.raw_weight if module.store.is_full else None))
    if not tables:
        raise ValueError(
            f"{type(model).__name__} has no table to calibrate: no nn.Embedding or nn.EmbeddingBag with a plain "
            "weight and torch's forward pass, and no quantised layer"
        )
    return tables


def _table(path: str, modules: tuple[Any, ...], parameter: Tensor | None) -> CalibratedTable:
    dim = int(modules[0].embedding_dim)
    zeros = torch.zeros(dim, dim, dtype=torch.float64, device="cpu")
    return CalibratedTable(path, modules, parameter, modules[0].padding_idx, moment=zeros)


@contextmanager
def watched(tables: Sequence[CalibratedTable]) -> Iterator[list[TablePass]]:
    """Within: every call of the tables' modules is noted in the list, and every table has a gradient."""
    passes: list[TablePass] = []
    parameters = [table.parameter for table in tables if table.parameter is not None]
    frozen = [each for each in parameters if not (each.requires_grad or each.is_inference())]
    handles = []
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for table in tables:
            for module in table.modules:
                hook = _hook(table, passes)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
        yield passes
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)


def _hook(table: CalibratedTable, passes: list[TablePass]) -> Callable[..., Tensor | None]:
    """Puts vectors without a history in place of a module's output: no gradient of the rows is computed."""

    def hook(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled() or not isinstance(output, Tensor):
            return None
        vectors = output.detach().requires_grad_()
        if not recomputing() and vectors.numel():
            passes.append(TablePass(table, vectors, _lookups(module, len(passes), *arguments, **keywords)))
        return vectors.clone()  # the model may change it in place

    return hook


def _lookups(
    module: Any, turn: int, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
) -> Lookups:
    """Of one call of a module, from its arguments."""
    if not isinstance(module, (nn.EmbeddingBag, MGQEmbeddingBag)):
        return lookups_of_vectors(input, module.padding_idx, SAMPLE, turn)
    options = (module.mode, module.include_last_offset, module.padding_idx)
    return lookups_of_bags(input, offsets, per_sample_weights, *options, SAMPLE, turn)


def add_gradients(tables: Sequence[CalibratedTable], passes: Sequence[TablePass], loss: Tensor, number: int) -> bool:
    """Add what a batch says to the tables; False, and nothing added, where a gradient is not finite."""
    read = [
        (table, table.parameter) for table in tables if table.parameter is not None and table.parameter.requires_grad
    ]
    inputs = [*(each.vectors for each in passes), *(parameter for _, parameter in read)]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True) if inputs else ()
    terms: list[tuple[CalibratedTable, Tensor, Lookups]] = []
    for each, gradient in zip(passes, gradients, strict=False):
        each.table.is_used = True
        if gradient is not None:
            terms.append((each.table, gradient, each.lookups))
    for (table, _), gradient in zip(read, gradients[len(passes) :], strict=True):
        if gradient is not None:
            table.is_used = True
            rows = gradient.to_dense() if gradient.is_sparse else gradient
            terms.append((table, rows, lookups_of_rows(len(rows), table.padding_idx, SAMPLE, number, rows.device)))
    sums = [(table, *second_moment(gradient, lookups)) for table, gradient, lookups in terms]
    if not all(bool(is_finite) for _, _, _, is_finite in sums):
        return False
    for table, moment, lookups, _ in sums:
        table.moment += moment.cpu().double()
        table.lookups += float(lookups)
    return True
