"""One table: whether it is compressed, to what, and the layer that takes its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mgqe.codec.planning import Plan
from mgqe.codec.size import frozen_nbytes
from mgqe.codec.tiers import Tiers
from mgqe.convert.find import FoundTable
from mgqe.nn.bag import MGQEmbeddingBag
from mgqe.nn.config import CompressConfig
from mgqe.nn.embedding import MGQEmbedding
from mgqe.nn.quantization import Counts, resolve_tiers

_SHARED = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class Decision:
    """What becomes of a table.

    Attributes:
        why: for the report.
        compress: whether it is swapped; then ``config`` and ``tiers`` say for what.
        bytes_after: of its frozen file; None where that is not known.
    """

    why: str
    compress: bool = False
    bytes_after: int | None = None
    config: CompressConfig | None = None
    tiers: Tiers | None = None


def decide(
    table: FoundTable, config: CompressConfig, counts: Counts | Tiers | None, chosen: Plan | str | None = None
) -> Decision:
    """Decide about a table.

    Args:
        chosen: what a budget made of it, or why it left it, where there is one.

    Raises:
        ValueError, TypeError: counts or settings that do not fit it.
    """
    module = table.module
    own = config.for_table(table.paths)
    if isinstance(chosen, str):
        return Decision(chosen)
    if chosen is not None and own is not None:
        own, counts = own.with_plan(chosen), None if counts is None else chosen.tiers
    # Counts are checked also where they are not needed.
    tiers = resolve_tiers(int(module.num_embeddings), counts, (own or config).fractions)  # type: ignore[arg-type]
    if own is None:
        return Decision(f"left: rule {config.rule_for(table.paths)!r}")
    if (reason := obstacle(table)) is not None:
        return Decision(f"left: {reason}")
    weight = module._parameters["weight"]
    assert weight is not None  # an obstacle otherwise
    own = (own if counts is not None else own.for_one_tier()).cut_to(tiers)
    capacity = own.capacity_of(int(module.embedding_dim), tiers)  # type: ignore[arg-type]
    zero = module.padding_idx if zero_padding(module) else None
    after = frozen_nbytes(tiers, capacity, zero, own.centroid_dtype)  # type: ignore[arg-type]
    if after >= weight.nbytes:
        return Decision("left: codes and centroids would take no fewer bytes", bytes_after=after)
    made = "; ".join(
        f"{n:,} ids x {d} of {k}"
        for n, d, k in zip(tiers.sizes, capacity.num_subspaces, capacity.num_centroids, strict=True)
    )
    if counts is None:
        made += " (one tier: no counts)"
    return Decision(made, True, after, own, tiers)


def make_layer(table: FoundTable, decide: Decision) -> MGQEmbedding | MGQEmbeddingBag:
    """The layer in a table's place. It trains the table's own parameter, which optimisers may hold already."""
    module, config = table.module, decide.config
    assert config is not None  # for mypy: a decision to compress has one
    weight = module._parameters["weight"]
    assert weight is not None
    arguments: dict[str, Any] = {name: getattr(module, name) for name in _SHARED}
    if isinstance(module, nn.EmbeddingBag):
        arguments.update(mode=module.mode, include_last_offset=module.include_last_offset)
    kind = MGQEmbeddingBag if isinstance(module, nn.EmbeddingBag) else MGQEmbedding
    layer = kind(
        int(module.num_embeddings),  # type: ignore[arg-type]
        int(module.embedding_dim),  # type: ignore[arg-type]
        _weight=weight,
        tiers=decide.tiers,
        config=config if config.init == "warmup" else replace(config, warmup_steps=0),
        **arguments,
    )
    if weight.is_inference():  # no optimiser could train it: a copy takes its place
        layer.raw_weight.requires_grad_(weight.requires_grad)
    else:
        layer.register_parameter("weight", weight)
    layer.zero_padding = zero_padding(module)
    for hooks in _HOOKS:  # the dictionaries themselves, so that handles still remove theirs
        setattr(layer, hooks, getattr(module, hooks))
    return layer.train(module.training)


def zero_padding(module: nn.Module) -> bool:
    """Whether ``padding_idx`` may look up as zeros: not where an nn.Embedding's row for it holds anything else."""
    weight, padding = module._parameters.get("weight"), module.padding_idx
    if isinstance(module, nn.EmbeddingBag) or weight is None or padding is None or weight.is_meta:
        return True
    return not bool(weight.detach()[padding].any())  # type: ignore[index]


def obstacle(table: FoundTable) -> str | None:
    """Why a table cannot be swapped whatever the settings."""
    module = table.module
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is no plain parameter (parametrised or pruned)"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    if not _plain(module):
        return f"{type(module).__name__} has a forward pass of its own"
    for other in table.others:
        if type(other) is not type(module) or _settings(other) != _settings(module):
            return "modules that share its weight differ in class or settings"
    return None


def _plain(module: nn.Module) -> bool:
    """Whether the forward pass is torch's, or does the same."""
    own = type(module).forward
    return own in (nn.Embedding.forward, nn.EmbeddingBag.forward) or getattr(type(module), "plain_forward", False)


def _settings(module: nn.Module) -> tuple[object, ...]:
    return tuple(getattr(module, name, None) for name in (*_SHARED, "mode", "include_last_offset"))
