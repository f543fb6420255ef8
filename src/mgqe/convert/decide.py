"""Whether and how one table is compressed, and the layer that replaces it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.planning import Plan
from mgqe.codec.planning.mixed import FittedPlan, least_nbytes
from mgqe.codec.planning.problem import Candidate
from mgqe.codec.planning.speed import Frequencies, lookup_share
from mgqe.codec.tiers import Tiers, check_counts
from mgqe.convert.find import ModelTable
from mgqe.nn.bag import DPQEmbeddingBag, MGQEmbeddingBag
from mgqe.nn.config import CompressConfig
from mgqe.nn.embedding import DPQEmbedding, MGQEmbedding
from mgqe.nn.quantization import Counts, resolve_tiers

_TORCH_ARGUMENTS = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True, eq=False)
class Spending:
    """What a budget gives a table.

    Attributes:
        nbytes: of its frozen file, at most.
        fitted: the plan and its centroids, of a trained table; None: the layer plans when its warm-up ends.
    """

    nbytes: int
    fitted: FittedPlan | None = None

    @property
    def why(self) -> str:
        """For the report."""
        if self.fitted is None:
            return "at most, planned on its rows when the warm-up ends"
        choice = self.fitted.plan.choice  # the candidate's, but for what this table has no tiers or metric for
        candidate = Candidate(choice.counts_power, choice.fractions, choice.metric.source, choice.by_length)
        return f"{self.fitted.plan.capacity.describe()} ({candidate.describe()})"


@dataclass(frozen=True)
class Decision:
    """What becomes of a table.

    Attributes:
        why: what the table becomes or why it is left, for the report.
        compress: whether the table is swapped, for a layer with ``config`` and ``tiers``.
        bytes_after: bytes of the frozen file; None where they are not known.
    """

    why: str
    compress: bool = False
    bytes_after: int | None = None
    config: CompressConfig | None = None
    tiers: Tiers | None = None
    counts: Counts | None = None
    fitted: FittedPlan | None = None

    def lookup_share(self, embedding_dim: int, counts: Counts | Tiers | None) -> float | None:
        """What a look-up is expected to take as a share of nn.Embedding's time; None where no shape is known."""
        asked = None if counts is None or isinstance(counts, Tiers) else check_counts(counts, None)
        if self.fitted is not None:
            return self.fitted.plan.lookup_share(asked)
        if self.config is None or self.tiers is None:
            return None
        capacity = self.config.capacity_of(embedding_dim, self.tiers)
        return lookup_share(capacity, Frequencies.of(self.tiers.num_embeddings, asked), turned=False)


def decide(
    table: ModelTable, config: CompressConfig, counts: Counts | Tiers | None, plan: Spending | Plan | str | None = None
) -> Decision:
    """Decide about a table.

    Args:
        plan: what a budget made of the table, or why it left the table; None without a budget.

    Raises:
        ValueError, TypeError: counts or settings that do not fit the table.
    """
    module = table.module
    config_of_table = config.for_table(table.paths)
    if isinstance(plan, str):
        return Decision(plan)
    if isinstance(plan, Spending) and config_of_table is not None and not isinstance(counts, Tiers):
        config = config_of_table
        if config.budget is not None:
            n, d = int(module.num_embeddings), int(module.embedding_dim)  # type: ignore[arg-type]
            least = least_nbytes(n, d, module.padding_idx)  # type: ignore[arg-type]
            config = replace(config, budget=max(plan.nbytes, least))  # tables of equal rows take less than layers do
        why = plan.why + (" (one tier: no counts)" if counts is None and plan.fitted is None else "")
        return Decision(why, True, plan.nbytes, config, counts=counts, fitted=plan.fitted)
    if isinstance(plan, Plan) and config_of_table is not None:
        config_of_table, counts = config_of_table.with_plan(plan), None if counts is None else plan.tiers
    # Wrong counts are an error also for a table that is left as it is.
    tiers = resolve_tiers(int(module.num_embeddings), counts, (config_of_table or config).fractions)  # type: ignore[arg-type]
    if config_of_table is None:
        return Decision(f"left: rule {config.rule_for(table.paths)!r}")
    if (reason := obstacle(table)) is not None:
        return Decision(f"left: {reason}")
    weight = module._parameters["weight"]
    assert weight is not None  # an obstacle otherwise
    config = (config_of_table if counts is not None else config_of_table.for_one_tier()).cut_to(tiers)
    capacity = config.capacity_of(int(module.embedding_dim), tiers)  # type: ignore[arg-type]
    zero = module.padding_idx if zero_padding(module) else None
    after = frozen_nbytes(tiers, capacity, zero, config.centroid_dtype)  # type: ignore[arg-type]
    if after >= weight.nbytes:
        return Decision("left: codes and centroids would take no fewer bytes", bytes_after=after)
    why = capacity.describe() + (" (one tier: no counts)" if counts is None else "")
    return Decision(why, True, after, config, tiers)


def make_layer(table: ModelTable, decision: Decision) -> MGQEmbedding | MGQEmbeddingBag:
    """The layer that replaces a table. It trains the table's own parameter, which optimisers may hold already."""
    module, config = table.module, decision.config
    assert config is not None  # for mypy: a decision to compress has one
    weight = module._parameters["weight"]
    assert weight is not None
    arguments: dict[str, Any] = {name: getattr(module, name) for name in _TORCH_ARGUMENTS}
    if isinstance(module, nn.EmbeddingBag):
        arguments.update(mode=module.mode, include_last_offset=module.include_last_offset)
    several = decision.fitted is not None and decision.fitted.plan.tiers.num_tiers > 1  # by length, without counts
    one_tier = decision.tiers is None and decision.counts is None and not several
    if not one_tier:
        arguments.update(tiers=decision.tiers, counts=decision.counts)
    layer = _layer_class(isinstance(module, nn.EmbeddingBag), one_tier)(
        int(module.num_embeddings),  # type: ignore[arg-type]
        int(module.embedding_dim),  # type: ignore[arg-type]
        _weight=weight,
        config=config if config.init == "warmup" else replace(config, warmup_steps=0),
        **arguments,
    )
    if weight.is_inference():  # no optimiser could train it, so that the layer has a copy
        layer.raw_weight.requires_grad_(weight.requires_grad)
    else:
        layer.register_parameter("weight", weight)
    layer.zero_padding = zero_padding(module)
    for hooks in _HOOKS:  # the dictionaries themselves, so that handles can still remove their hooks
        setattr(layer, hooks, getattr(module, hooks))
    return layer.train(module.training)


def _layer_class(is_bag: bool, one_tier: bool) -> type[MGQEmbedding]:
    if is_bag:
        return DPQEmbeddingBag if one_tier else MGQEmbeddingBag
    return DPQEmbedding if one_tier else MGQEmbedding


def zero_padding(module: nn.Module) -> bool:
    """Whether ``padding_idx`` may look up as zeros: not where an nn.Embedding's row for it holds anything else."""
    weight, padding = module._parameters.get("weight"), module.padding_idx
    if isinstance(module, nn.EmbeddingBag) or weight is None or padding is None or weight.is_meta:
        return True
    return not bool(weight.detach()[padding].any())  # type: ignore[index]


def obstacle(table: ModelTable) -> str | None:
    """Why a table cannot be swapped, whatever the settings are; None if it can."""
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
    """Whether the forward pass is torch's, or declares that it does what torch's does."""
    forward = type(module).forward
    return forward in (nn.Embedding.forward, nn.EmbeddingBag.forward) or getattr(type(module), "plain_forward", False)


def _settings(module: nn.Module) -> tuple[object, ...]:
    return tuple(getattr(module, name, None) for name in (*_TORCH_ARGUMENTS, "mode", "include_last_offset"))
