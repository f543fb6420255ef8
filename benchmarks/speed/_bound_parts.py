"""Parts of look-ups, bags, steps and searches alone, as calls to be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks._common import Contender
from benchmarks.speed import _limits
from benchmarks.speed.budgets import training_step
from mgqe import CompactTable, MGQEmbedding, ops
from mgqe.nn.metric import RARELY
from mgqe.nn.quantizers.mixed import MixedQuantizer


def line_reader(table: CompactTable, ids: list[Tensor]) -> Contender:
    """Reads the lines of the codes of ids, asked for ahead, as if all rows had those of the largest tier."""
    codes, row_bytes = _as_many_codes(table)
    return lambda i: _limits.run("rows", codes, row_bytes, ids[i], len(ids[i]))


def row_writer(table: CompactTable, ids: list[Tensor]) -> Contender:
    """The same, and writes a row of float32 for each id."""
    codes, row_bytes = _as_many_codes(table)
    n, d = len(ids[0]), table.embedding_dim
    return lambda i: _limits.run("look_up", codes, row_bytes, ids[i], n, d, torch.empty(n, d))


def _as_many_codes(table: CompactTable) -> tuple[Tensor, int]:
    row_bytes = largest_codes(table).shape[1]
    return ops.empty_in_large_pages((table.num_embeddings * row_bytes,), torch.uint8).zero_(), row_bytes


def all_reader(table: CompactTable) -> Contender:
    """Reads all codes once, with as many threads as torch has."""
    codes = [each.view(-1)[: each.numel() // 256 * 256] for each in table.snapshot.lookup.table.codes]
    if torch.get_num_threads() > 1:  # eight bytes at a time
        words = [each.view(torch.int64) for each in codes]
        return lambda i: [each.sum() for each in words]
    return lambda i: [_limits.run("read", each, each.numel()) for each in codes]


def largest_codes(table: CompactTable) -> Tensor:
    """Of the tier with the most rows."""
    codes: Sequence[Tensor] = table.snapshot.lookup.table.codes
    return max(codes, key=len)


def has_levels(table: CompactTable) -> bool:
    """Whether each number has a code of its own."""
    layout = table.snapshot.layout
    return bool(layout.widths) and len(layout.widths) == layout.num_coordinates


def turned(table: CompactTable) -> bool:
    """Whether coordinates are multiplied with a matrix."""
    transform = table.snapshot.transform
    return transform is not None and transform.turns


def over(call: Callable[[Tensor], object], batches: list[Tensor]) -> Contender:
    return lambda i: call(batches[i])


def many_steps(layer: MGQEmbedding, ids: list[Tensor]) -> Contender:
    """As many training steps as have one in which gradients are gathered."""
    step = training_step(layer, ids)
    return lambda i: [step((i + k) % len(ids)) for k in range(RARELY)]


def codes_finder(layer: MGQEmbedding, ids: Tensor) -> Contender:
    """Finds the codes of the distinct ids, tier after tier."""
    tiers = _ids_of_tiers(layer, ids)
    return lambda i: [layer.codes_of(of_tier, g) for g, of_tier in enumerate(tiers)]


def as_many_products(layer: MGQEmbedding, ids: Tensor) -> Contender | None:
    """For each tier a product of matrices with as many multiplications as a step has; None where it has none.

    Where coordinates are turned, those of rows with the axes, of coordinates back to rows, and of errors back to
    gradients; where they have no levels, those of rows with centroids.
    """
    assert isinstance(layer.quantizer, MixedQuantizer)
    capacity, d, factors = layer.capacity, layer.embedding_dim, []
    of_turning = 3 * d * capacity.num_coordinates if layer.quantizer.transform.turns else 0
    for tier, of_tier in zip(capacity.tiers, _ids_of_tiers(layer, ids), strict=True):
        codes = zip(capacity.widths, tier.code_bits, strict=True)
        per_row = of_turning + (0 if capacity.has_levels else sum(w << bits for w, bits in codes))
        factors.append((torch.randn(len(of_tier), d), torch.randn(d, per_row // d)))
    return (lambda i: [left @ right for left, right in factors]) if any(right.numel() for _, right in factors) else None


def levels_searched(layer: MGQEmbedding, ids: Tensor) -> Contender:
    """As many numbers as the distinct ids have, each looked for among levels."""
    numbers, levels = torch.rand(256), torch.linspace(0, 1, 256)
    L = layer.capacity.num_coordinates
    counts = [
        (len(of_tier) * L // 16 * 16, max(5, max(tier.code_bits)))
        for tier, of_tier in zip(layer.capacity.tiers, _ids_of_tiers(layer, ids), strict=True)
    ]
    return lambda i: [_limits.run("search", numbers, count, bits, levels) for count, bits in counts]


def errors_added(layer: MGQEmbedding, ids: Tensor) -> Contender:
    """As many numbers as the distinct ids have, added up by codes."""
    n, L = len(ids.unique()), layer.capacity.num_coordinates
    errors, places = torch.randn(n * L), torch.randint(16_384, (n * L,))
    return lambda i: torch.zeros(16_384).scatter_add_(0, places, errors)


def centroids_stepped(layer: MGQEmbedding) -> Contender:
    """SparseAdam's step of the centroids of all tiers."""
    assert isinstance(layer.quantizer, MixedQuantizer)
    (book,) = layer.quantizer.codebooks
    rows = -(-sum(length for (length,) in layer.capacity.codebook_shapes) // book[0].numel())
    parameter = torch.nn.Parameter(torch.zeros_like(book))
    values, places = torch.randn(rows, *book.shape[1:]), torch.arange(rows)[None]
    parameter.grad = torch.sparse_coo_tensor(places, values, book.shape, is_coalesced=True)
    optimizer = torch.optim.SparseAdam([parameter])
    return lambda i: optimizer.step()


def _ids_of_tiers(layer: MGQEmbedding, ids: Tensor) -> list[Tensor]:
    """The distinct ids in each tier; all ids are in the order of their counts."""
    distinct = ids.unique()
    ends = torch.searchsorted(distinct, torch.tensor(layer.tiers.starts[1:-1]))
    return list(distinct.tensor_split(ends))
