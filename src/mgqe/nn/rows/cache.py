"""CacheStore: codes of all ids, full rows for those that train now (:class:`mgqe.nn.rows.CachedRows`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe import ops
from mgqe.codec.capacity import Capacity
from mgqe.codec.equations import tier_codebook
from mgqe.codec.packing import code_dtype
from mgqe.codec.tiers import Tiers
from mgqe.nn.context.graphs import outside_graphs
from mgqe.nn.quantizers.vq import VQQuantizer
from mgqe.nn.rows.config import CachedRows
from mgqe.nn.rows.store import RowStore

FULL = 0.75  # of the cache taken: it is encoded and emptied before the next step
SLACK = 1.5  # and at the latest when this many times the largest step would not fit any more
LEAST_CACHE = 65_536
SAMPLE = 1 << 20  # rows of a tier that one step of Lloyd's algorithm looks at


class CacheStore(RowStore):
    """Rows of a parameter (H + M, d): H of the most frequent ids, then M places that others take while they train.

    Bytes a row of the vocabulary: D a code (2 D beyond 256 centroids) and 4 for its place.

    Attributes:
        codes_held: (N, D) every id's codes, up to date for ids without a place.
        place_of: int32 (N,) the row of the parameter that holds an id's row, or -1.
        owner: int64 (M,) the id in each place of the cache.
        state: int64 (5,): places taken, how often the cache was emptied, whether codes have been given, the most places
            that one step took, places taken before this step.
    """

    codes_held: Tensor
    place_of: Tensor
    owner: Tensor
    state: Tensor

    def __init__(
        self, config: CachedRows, tiers: Tiers, capacity: Capacity, quantizer: VQQuantizer, device: torch.device
    ) -> None:
        super().__init__()
        n = tiers.num_embeddings
        head, cache = sizes_of(config, tiers)
        self._tiers, self._capacity = tiers, capacity
        # A reference that nn.Module does not see: the codebooks are the layer's.
        self._quantizer = (quantizer,)
        self.head_rows = head
        self._init_std = None if config.codes is None else config.init_std
        kind = code_dtype(max(capacity.num_centroids))
        shape = (n, max(capacity.num_subspaces))
        held = torch.empty(shape, dtype=kind, device=device)
        if config.codes is not None:
            held.copy_(checked_codes(config.codes, shape, capacity, tiers, device))
        self.register_buffer("codes_held", held)
        self.register_buffer("place_of", torch.empty(n, dtype=torch.int32, device=device))
        self.register_buffer("owner", torch.zeros(cache, dtype=torch.int64, device=device))
        self.register_buffer("state", torch.zeros(5, dtype=torch.int64, device="cpu"))
        self.register_buffer("heads", head_ids(tiers, head).to(device), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """An empty cache, and no codes; or those that are there, with centroids at random, if it began with codes."""
        self.heads.copy_(head_ids(self._tiers, self.head_rows))
        self.state.zero_()
        self.owner.zero_()
        self.place_of.fill_(-1)
        self.place_of[self.heads] = torch.arange(self.head_rows, dtype=torch.int32, device=self.place_of.device)
        if self._init_std is None:
            self.codes_held.zero_()
            return
        self.state[2] = 1
        for book in self._quantizer[0].codebooks:
            book.normal_(std=self._init_std)

    heads: Tensor

    @property
    def ready(self) -> bool:
        """Whether ids without a place have codes that mean something."""
        return bool(self.state[2])

    @property
    def emptied(self) -> int:
        """How often the cache was encoded."""
        return int(self.state[1])

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
        dim = self._capacity.embedding_dim
        if not self.ready:
            return torch.zeros(ids.shape[0], dim, dtype=torch.float32, device=ids.device)
        rows = torch.empty(ids.shape[0], dim, dtype=torch.float32, device=ids.device)
        for g, chosen in self._by_tier(ids):
            codes = self.codes_held[ids[chosen], : self._capacity.num_subspaces[g]]
            rows[chosen] = ops.gather(codes.to(torch.int32), self._book(g))
        return rows

    def _book(self, tier: int) -> Tensor:
        number = self._capacity.codebook_of[tier]
        book = self._quantizer[0]._book(number)
        return tier_codebook(book, self._capacity.num_subspaces[tier], self._capacity.num_centroids[tier]).contiguous()

    def _by_tier(self, ids: Tensor) -> list[tuple[int, Tensor]]:
        if self._capacity.num_tiers == 1:
            return [(0, torch.arange(ids.shape[0], device=ids.device))]
        tier = self._tiers.of(ids)
        found = [(g, (tier == g).nonzero().squeeze(1)) for g in range(self._capacity.num_tiers)]
        return [(g, chosen) for g, chosen in found if chosen.numel()]

    @outside_graphs
    @torch.no_grad()
    def places(self, weight: Tensor, ids: Tensor) -> Tensor | None:
        if not weight.requires_grad:  # nobody will step, so nobody would say when to empty the cache
            return None
        found = self.place_of[ids]
        new = ids[found < 0]
        if new.numel():
            new = torch.unique(new)
            self._admit(weight, new)
            found = self.place_of[ids]
        return found.long()

    def _admit(self, weight: Tensor, ids: Tensor) -> None:
        taken, emptied = self.state[:2].tolist()
        end = taken + ids.shape[0]
        if end > self.owner.shape[0]:
            raise RuntimeError(
                f"the cache of {self.owner.shape[0]:,} rows is full: {end:,} ids would train between two steps of the "
                f"optimiser. Give rows=CachedRows(cache_rows={4 * end}), or step more often (a step that is skipped, "
                "as by a gradient scaler, does not count)"
            )
        if emptied or self.ready:  # else the places hold the rows that the parameter started with
            first = self.head_rows + taken
            # .data: not a change that counts as an optimiser's step, or that a waiting graph would mind
            weight.data[first : first + ids.shape[0]] = self._decoded(ids).to(weight.dtype)
        self.owner[taken:end] = ids
        self.place_of[ids] = torch.arange(
            self.head_rows + taken, self.head_rows + end, dtype=torch.int32, device=ids.device
        )
        self.state[0] = end

    @outside_graphs
    def train_rows(self, weight: Tensor, ids: Tensor, sparse: bool) -> Tensor:
        places = self.places(weight, ids)
        return self.read(weight, ids) if places is None else F.embedding(places, weight, sparse=sparse)

    def final_codes_mask(self, ids: Tensor) -> Tensor | None:
        return self.place_of[ids] < 0 if self.ready else None

    def residents(self, tier: int, limit: int, generator: torch.Generator) -> Tensor:
        """Ids of a tier that have a row, at most ``limit`` of them at random."""
        ids = torch.cat([self.heads, self.owner[: int(self.state[0])]])
        if self._capacity.num_tiers > 1:
            ids = ids[self._tiers.of(ids) == tier]
        if ids.shape[0] <= limit:
            return ids
        return ids[torch.randperm(ids.shape[0], generator=generator, device="cpu")[:limit].to(ids.device)]

    def nearly_full(self) -> bool:
        """Whether the cache should be emptied before another step: asked once between two steps."""
        taken, _, _, most, before = self.state.tolist()
        if self.head_rows + self.owner.shape[0] >= self.place_of.shape[0]:
            return False  # there is a place for every id
        size, most = self.owner.shape[0], max(most, taken - before)
        self.state[3], self.state[4] = most, taken
        return bool(taken > FULL * size or taken + SLACK * most > size)

    def after_step(self, weight: Tensor, passes: int) -> None:
        self._tell(weight)

    def _tell(self, weight: Tensor) -> None:
        """Leave word for the optimiser: how often the places were renewed, and the first one."""
        weight.mgqe_renewed = (self.emptied, self.head_rows)  # type: ignore[attr-defined]

    @torch.no_grad()
    def flush(self, weight: Tensor) -> None:
        """Encode the rows in the cache and give their places up. The codebooks must have started."""
        taken = int(self.state[0])
        ids = self.owner[:taken]
        rows = weight.detach()[self.head_rows : self.head_rows + taken]
        for g, chosen in self._by_tier(ids):
            for part in torch.split(chosen, LEAST_CACHE):
                codes = self._quantizer[0].codes(rows[part].float(), g)
                self.codes_held[ids[part], : codes.shape[1]] = codes.to(self.codes_held.dtype)
        self.place_of[ids] = -1
        self.state[0] = self.state[4] = 0
        self.state[1] += 1
        self._tell(weight)

    @torch.no_grad()
    def start(self) -> None:
        """Give every id the code nearest to zero, once, when the codebooks have started."""
        if self.ready:
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
        self.state[2] = 1

    @torch.no_grad()
    def lloyd_step(self, weight: Tensor, generator: torch.Generator) -> None:
        """One step of Lloyd's algorithm on the rows that are held: codebooks keep up with rows that train unquantised.

        Centroids that none of these rows chooses stay where they are: other ids may have them.
        """
        quantizer, capacity = self._quantizer[0], self._capacity
        for number, parameter in enumerate(quantizer.codebooks):
            sums = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
            counts = torch.zeros(parameter.shape[:2], dtype=torch.float32, device=parameter.device)
            for g, owner in enumerate(capacity.codebook_of):
                if owner != number:
                    continue
                rows = self.read(weight, self.residents(g, SAMPLE, generator))
                if rows.shape[0]:
                    found, times = ops.scatter(rows, quantizer.codes(rows, g), None, *parameter.shape)
                    sums += found
                    counts += times
            moved = sums / counts.clamp(min=1).unsqueeze(-1)
            parameter.copy_(torch.where((counts > 0).unsqueeze(-1), moved, parameter.float()).to(parameter.dtype))

    def codes(self, ids: Tensor, tier: int) -> Tensor | None:
        """Of ids all of which have none but their codes; None otherwise."""
        if not self.ready or bool((self.place_of[ids] >= 0).any()):
            return None
        return self.codes_held[ids, : self._capacity.num_subspaces[tier]].to(torch.int32)


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
    found: list[Tensor] = []
    for g in range(tiers.num_tiers):
        left = head - sum(len(ids) for ids in found)
        if left > 0:
            found.append(tiers.members(g)[:left])
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device="cpu")


def checked_codes(
    codes: Tensor, shape: tuple[int, int], capacity: Capacity, tiers: Tiers, device: torch.device
) -> Tensor:
    """Given codes, known to fit; TypeError or ValueError says what does not."""
    if device.type == "meta":
        raise ValueError("codes= cannot be kept on the meta device: make the layer where it will train")
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.dtype == torch.bool:
        kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"codes must be integers (N, D), got {kind}")
    if tuple(codes.shape) != shape:
        raise ValueError(f"codes must have shape {shape}, num_embeddings and num_subspaces, got {tuple(codes.shape)}")
    for g, (subspaces, centroids) in enumerate(zip(capacity.num_subspaces, capacity.num_centroids, strict=True)):
        if not tiers.sizes[g]:
            continue
        start, stop = tiers.starts[g], tiers.starts[g + 1]
        mine = codes[start:stop] if tiers.tier_of is None else codes[tiers.members(g).to(codes.device)]
        low, high = int(mine[:, :subspaces].min()), int(mine[:, :subspaces].max())
        if low < 0 or high >= centroids:
            raise ValueError(f"codes of tier {g} must be in 0 .. {centroids - 1}, got {low} .. {high}")
    return codes
