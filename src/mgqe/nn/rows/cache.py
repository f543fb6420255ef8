"""CacheStore: codes of all ids, full rows for those that train now (:class:`mgqe.nn.rows.CachedRows`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.codec.capacity import DEFAULT_HEAD_CENTROIDS, MIN_CENTROIDS, Capacity, default_num_subspaces
from mgqe.codec.packing import code_dtype
from mgqe.codec.tiers import Tiers
from mgqe.nn.context.ddp import common_generator
from mgqe.nn.context.decorators import outside_graphs
from mgqe.nn.context.hints import OptimizerHints, leave_hints
from mgqe.nn.quantizers.autograd import ReadRows
from mgqe.nn.quantizers.base import Quantizer
from mgqe.nn.quantizers.vq import VQQuantizer
from mgqe.nn.rows.config import CachedRows
from mgqe.nn.rows.store import HostState, RowStore, StateEntry

FULL = 0.75  # of the cache taken: it is encoded and emptied before the next step
SLACK = 1.5  # and at the latest when this many times the largest step would not fit any more
LEAST_CACHE = 65_536
SAMPLE = 1 << 20  # rows of a tier that one step of Lloyd's algorithm looks at


class CacheStore(HostState, RowStore, nn.Module):
    """Rows of a parameter (H + M, d): H of the most frequent ids, then M places that others take while they train.

    Bytes per row of the vocabulary: D for its codes (2 D beyond 256 centroids) and 4 for its place.

    In the warm-up of a layer with a budget rows that are given up have codes of codebooks of the store's own, fine
    enough for a plan to be made of what these decode to. The plan then gives all ids their codes.

    Attributes:
        codes_held: (N, D) every id's codes, up to date for ids without a place.
        own: the codebooks of the store's own; None where the layer's own encode rows from the start.
        place_of: int32 (N,) the row of the parameter that holds an id's row, or -1.
        owner: int64 (M,) the id in each place of the cache.
        state: int64 (5,) what checkpoints keep of the entries named here.
        taken: places that are taken.
        emptied: how often the cache was emptied.
        codes_given: 1 if codes have been given, else 0.
        most_taken: the most places that one step took.
        taken_before: places that were taken before this step.
    """

    may_revive = False
    trains_all_ids = False
    trains_in_eval_mode = False

    codes_held: Tensor
    place_of: Tensor
    owner: Tensor
    heads: Tensor
    state: Tensor
    taken = StateEntry(0)
    emptied = StateEntry(1)
    codes_given = StateEntry(2)
    most_taken = StateEntry(3)
    taken_before = StateEntry(4)

    def __init__(self, config: CachedRows, tiers: Tiers, quantizer: VQQuantizer | None, weight: Tensor) -> None:
        super().__init__()
        n, device = tiers.num_embeddings, weight.device
        head, cache = sizes_of(config, tiers)
        self._head_tiers = self._tiers = tiers
        self.own: VQQuantizer | None = None
        if quantizer is None:  # there will be a plan
            self._tiers = Tiers.from_sizes([n])
            self.own = quantizer = own_codebooks(n, weight.shape[1], weight)
        capacity = quantizer.capacity
        # A reference that nn.Module does not see: the codebooks are the layer's.
        self._quantizer: tuple[Quantizer] = (quantizer,)
        self.head_rows = head
        self._init_std = None if config.codes is None else config.init_std
        shape = (n, max(capacity.num_subspaces))
        codes = torch.empty(shape, dtype=code_dtype(max(capacity.num_centroids)), device=device)
        if config.codes is not None:
            codes.copy_(checked_codes(config.codes, shape, capacity, tiers, device))
        self.register_buffer("codes_held", codes)
        self.register_buffer("place_of", torch.empty(n, dtype=torch.int32, device=device))
        self.register_buffer("owner", torch.zeros(cache, dtype=torch.int64, device=device))
        self.register_buffer("state", torch.zeros(5, dtype=torch.int64, device="cpu"))
        self.register_buffer("heads", head_ids(tiers, head).to(device), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """An empty cache, and no codes; or those that are there, with centroids at random, if it began with codes."""
        self.heads.copy_(head_ids(self._head_tiers, self.head_rows))
        self.state.zero_()
        self.owner.zero_()
        self.place_of.fill_(-1)
        self.place_of[self.heads] = torch.arange(self.head_rows, dtype=torch.int32, device=self.place_of.device)
        if self._init_std is None:
            self.codes_held.zero_()
            return
        self.codes_given = 1
        for book in self._vq.codebooks:
            book.normal_(std=self._init_std)

    @property
    def _capacity(self) -> Capacity:
        return self._quantizer[0].capacity

    @property
    def _vq(self) -> VQQuantizer:
        """The codebooks, where there is no plan yet or there will be none."""
        (quantizer,) = self._quantizer
        assert isinstance(quantizer, VQQuantizer)
        return quantizer

    # ---- a plan --------------------------------------------------------------------------------------------

    def codebooks(self, quantizer: Quantizer) -> Quantizer:
        return self._quantizer[0]

    @torch.no_grad()
    def adopt_plan(self, weight: Tensor, quantizer: Quantizer, tiers: Tiers) -> None:
        shape = len(self.codes_held), max(quantizer.capacity.num_subspaces)
        codes = torch.zeros(shape, dtype=code_dtype(max(quantizer.capacity.num_centroids)), device=weight.device)
        for g in range(tiers.num_tiers):
            for ids in tiers.member_chunks(g, LEAST_CACHE):
                at = ids.to(weight.device)
                codes[at] = quantizer.codes(self.read(weight, at), g).to(codes.dtype)
        self.codes_held = codes
        self._quantizer, self._tiers = (quantizer,), tiers
        self.codes_given = 1
        self._init_std = None  # the codes that it began with are gone

    def read_plan(self, quantizer: Quantizer, tiers: Tiers) -> None:
        if quantizer.is_planned:
            self._quantizer, self._tiers = (quantizer,), tiers
        elif self.own is not None:
            self._quantizer, self._tiers = (self.own,), tiers
            subspaces = self.own.capacity.num_subspaces[0]
            if self.codes_held.shape[1] != subspaces:  # those of a plan that is gone
                self.codes_held = self.codes_held.new_zeros(len(self.codes_held), subspaces)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}codes_held")
        if self.own is not None and isinstance(saved, Tensor) and saved.shape[:1] == self.codes_held.shape[:1]:
            self.codes_held = torch.empty(saved.shape, dtype=saved.dtype, device=self.codes_held.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    # ---- rows ----------------------------------------------------------------------------------------------

    @property
    def has_codes(self) -> bool:
        return bool(self.codes_given)

    @outside_graphs
    def read(self, weight: Tensor, ids: Tensor) -> Tensor:
        places = self.place_of[ids].long()
        rows = weight.detach().index_select(0, places.clamp(min=0)).float()
        missing = (places < 0).nonzero().squeeze(1)
        if missing.numel():
            rows[missing] = self._decoded(ids[missing])
        return rows

    def _decoded(self, ids: Tensor) -> Tensor:
        """Rows of codes (n, d); zeros while there are none."""
        rows = torch.zeros(ids.shape[0], self._capacity.embedding_dim, dtype=torch.float32, device=ids.device)
        if not self.has_codes:
            return rows
        for g, chosen in self._by_tier(ids):
            codes = self.codes_held[ids[chosen], : self._capacity.num_subspaces[g]]
            rows[chosen] = self._quantizer[0].rows_of(codes.to(torch.int32), g)
        return rows

    def _by_tier(self, ids: Tensor) -> list[tuple[int, Tensor]]:
        if self._capacity.num_tiers == 1:
            return [(0, torch.arange(ids.shape[0], device=ids.device))]
        tier = self._tiers.of(ids)
        groups = [(g, (tier == g).nonzero().squeeze(1)) for g in range(self._capacity.num_tiers)]
        return [(g, chosen) for g, chosen in groups if chosen.numel()]

    @torch.no_grad()
    def places(self, weight: Tensor, ids: Tensor) -> Tensor:
        """Rows of the parameter (n,) that hold these ids' rows; ids without one get one."""
        places = self.place_of[ids]
        new = ids[places < 0]
        if new.numel():
            self._admit(weight, torch.unique(new))
            places = self.place_of[ids]
        return places.long()

    def _admit(self, weight: Tensor, ids: Tensor) -> None:
        taken = self.taken
        end = taken + ids.shape[0]
        if end > self.owner.shape[0]:
            raise RuntimeError(
                f"the cache of {self.owner.shape[0]:,} rows is full: {end:,} ids would train between two steps of the "
                f"optimiser. Give rows=CachedRows(cache_rows={4 * end}), or step more often (a step that is skipped, "
                "as by a gradient scaler, does not count)"
            )
        if self.emptied or self.has_codes:  # else the places hold the rows that the parameter started with
            first = self.head_rows + taken
            # .data, since this change must not count as an optimiser's step, nor trouble a graph that waits.
            weight.data[first : first + ids.shape[0]] = self._decoded(ids).to(weight.dtype)
        self.owner[taken:end] = ids
        self.place_of[ids] = torch.arange(
            self.head_rows + taken, self.head_rows + end, dtype=torch.int32, device=ids.device
        )
        self.taken = end

    @outside_graphs
    def train_rows(self, weight: Tensor, ids: Tensor, sparse: bool, left_out: int | None = None) -> Tensor:
        if not self.gathers(weight):
            return self.read(weight, ids)
        return ReadRows.apply(weight, self.places(weight, ids), sparse)  # type: ignore[no-any-return, no-untyped-call]

    def gathers(self, weight: Tensor) -> bool:
        # Rows that no optimiser moves take no places: no step would ever give these up.
        return weight.requires_grad

    @outside_graphs
    def final_codes_mask(self, ids: Tensor) -> Tensor | None:
        return self.place_of[ids] < 0 if self.has_codes else None

    def draw_ids(self, tiers: Tiers, tier: int, limit: int, generator: torch.Generator) -> Tensor:
        """Ids of a tier that have a row, at most ``limit`` of them at random."""
        ids = torch.cat([self.heads, self.owner[: self.taken]])
        if tiers.num_tiers > 1:
            ids = ids[tiers.of(ids) == tier]
        if ids.shape[0] <= limit:
            return ids
        return ids[torch.randperm(ids.shape[0], generator=generator, device="cpu")[:limit].to(ids.device)]

    def is_nearly_full(self) -> bool:
        if self.head_rows + self.owner.shape[0] >= self.place_of.shape[0]:
            return False  # there is a place for every id
        size, taken = self.owner.shape[0], self.taken
        self.most_taken = most = max(self.most_taken, taken - self.taken_before)
        self.taken_before = taken
        return bool(taken > FULL * size or taken + SLACK * most > size)

    def after_step(self, weight: Tensor, passes: int) -> None:
        leave_hints(weight, self.optimizer_hints())

    def optimizer_hints(self) -> OptimizerHints:
        return OptimizerHints(renewals=self.emptied, first_renewed=self.head_rows)

    @torch.no_grad()
    def flush(self, weight: Tensor) -> None:
        """Encode the rows in the cache and give their places up. The codebooks must have started."""
        taken = self.taken
        ids = self.owner[:taken]
        rows = weight.detach()[self.head_rows : self.head_rows + taken]
        for g, chosen in self._by_tier(ids):
            for some in torch.split(chosen, LEAST_CACHE):
                codes = self._quantizer[0].codes(rows[some].float(), g)
                self.codes_held[ids[some], : codes.shape[1]] = codes.to(self.codes_held.dtype)
        self.place_of[ids] = -1
        self.taken = self.taken_before = 0
        self.emptied += 1
        leave_hints(weight, self.optimizer_hints())

    @torch.no_grad()
    def codebooks_started(self) -> None:
        """Give every id the code nearest to zero, once."""
        if self.has_codes:
            return
        for g in range(self._capacity.num_tiers):
            zero = torch.zeros(1, self._capacity.embedding_dim, device=self.codes_held.device)
            code = self._quantizer[0].codes(zero, g).to(self.codes_held.dtype)
            if self._capacity.num_tiers == 1:
                self.codes_held[:] = code
            elif self._tiers.tier_of is None:
                self.codes_held[self._tiers.starts[g] : self._tiers.starts[g + 1], : code.shape[1]] = code
            else:
                self.codes_held[self._tiers.members(g).to(code.device), : code.shape[1]] = code
        self.codes_given = 1

    @torch.no_grad()
    def lloyd_step(self, weight: Tensor, passes: int) -> None:
        """One step of Lloyd's algorithm on the rows in the cache: codebooks keep up with rows that train unquantised.

        Centroids that none of these rows chooses stay where they are: other ids may have them.
        """
        quantizer, capacity, generator = self._vq, self._capacity, common_generator(weight, passes)
        for number, parameter in enumerate(quantizer.codebooks):
            sums = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
            counts = torch.zeros(parameter.shape[:2], dtype=torch.float32, device=parameter.device)
            for g in (g for g, used in enumerate(capacity.codebook_of) if used == number):
                rows = self.read(weight, self.draw_ids(self._tiers, g, SAMPLE, generator))
                if rows.shape[0]:
                    tier_sums, tier_counts = ops.scatter(rows, quantizer.codes(rows, g), None, *parameter.shape)
                    sums += tier_sums
                    counts += tier_counts
            moved = sums / counts.clamp(min=1).unsqueeze(-1)
            parameter.copy_(torch.where((counts > 0).unsqueeze(-1), moved, parameter.float()).to(parameter.dtype))

    def codes(self, ids: Tensor, tier: int) -> Tensor | None:
        if not self.has_codes:
            return None
        return self.codes_held[ids, : self._capacity.num_subspaces[tier]].to(torch.int32)


def own_codebooks(num_embeddings: int, embedding_dim: int, like: Tensor) -> VQQuantizer:
    """Codebooks for one tier, fine enough for a plan to be made of what they decode to; no optimiser moves them."""
    centroids = max(MIN_CENTROIDS, min(DEFAULT_HEAD_CENTROIDS, 1 << (num_embeddings.bit_length() - 1)))
    capacity = Capacity.of(embedding_dim, [num_embeddings], [default_num_subspaces(embedding_dim)], [centroids])
    return VQQuantizer(capacity, like, "float32", 0.0).requires_grad_(False)


def sizes_of(config: CachedRows, tiers: Tiers) -> tuple[int, int]:
    """H and M; ValueError where they do not fit the vocabulary."""
    n = tiers.num_embeddings
    head = (tiers.sizes[0] if tiers.num_tiers > 1 else 0) if config.head_rows is None else config.head_rows
    if head > n:
        raise ValueError(f"head_rows={head} is more than num_embeddings={n}")
    cache = max(LEAST_CACHE, n // 16) if config.cache_rows is None else config.cache_rows
    if cache == 0 and head < n:
        raise ValueError(
            f"cache_rows=0 leaves no place for {n - head:,} ids without a row of their own, which could never train: "
            "give cache_rows=1 or more, or head_rows for all"
        )
    return head, min(cache, n - head)


def head_ids(tiers: Tiers, head: int) -> Tensor:
    """The first ``head`` ids, tier by tier, in order of ids within one."""
    if tiers.tier_of is None:
        return torch.arange(head, device="cpu")
    ids = torch.empty(0, dtype=torch.int64, device="cpu")
    for g in range(tiers.num_tiers):
        if len(ids) < head:
            ids = torch.cat([ids, tiers.members(g)[: head - len(ids)]])
    return ids


def checked_codes(
    codes: Tensor, shape: tuple[int, int], capacity: Capacity, tiers: Tiers, device: torch.device
) -> Tensor:
    """The codes, which fit; TypeError or ValueError says what does not."""
    if device.type == "meta":
        raise ValueError("codes= cannot be kept on the meta device: make the layer where it will train")
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.dtype == torch.bool:
        kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"codes must be integers (N, D), got {kind}")
    if tuple(codes.shape) != shape:
        raise ValueError(f"codes must have shape {shape}, num_embeddings and num_subspaces, got {tuple(codes.shape)}")
    for g, tier in enumerate(capacity.tiers):
        if not tier.ids:
            continue
        start, stop = tiers.starts[g], tiers.starts[g + 1]
        of_tier = codes[start:stop] if tiers.tier_of is None else codes[tiers.members(g).to(codes.device)]
        low, high = (int(bound) for bound in of_tier[:, : tier.num_subspaces].aminmax())
        if low < 0 or high >= tier.num_centroids:
            raise ValueError(f"codes of tier {g} must be in 0 .. {tier.num_centroids - 1}, got {low} .. {high}")
    return codes
