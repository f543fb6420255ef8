"""CompactTable: the frozen product-quantised table, packed codes plus centroids and nothing else.

Size in bytes: sum_g n_g * ceil(D_g * bits_g / 8) for the codes; 4, 2 or 1 times K * d for the centroids of
each codebook (int8 adds a float32 scale per subspace); and the tier map, nothing for ids in frequency order.
Mixed tables, whose subspaces have widths and bits of their own, may have a mean and a matrix as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mgqe import ops
from mgqe.checks.devices import memory_for
from mgqe.checks.ids import as_int64, check_ids, plain_ids
from mgqe.checks.inference import outside_inference
from mgqe.checks.rows import plain_vectors
from mgqe.codec.layout import KIND, TableLayout
from mgqe.codec.packing import unpack
from mgqe.codec.stats import CodebookStats
from mgqe.codec.tensors import lay_out, lay_out_mixed
from mgqe.codec.tiers import Tiers
from mgqe.codec.transform import Transform
from mgqe.files.reader import Config
from mgqe.table.base import FrozenTable
from mgqe.table.coordinates import in_coordinates
from mgqe.table.faiss import to_faiss
from mgqe.table.from_faiss import faiss_codes
from mgqe.table.growth import Origin, WriterLock, check_fallback, check_tier, check_update_ids, check_vectors
from mgqe.table.search import Ids, ItemBias, TopK, item_bias, search
from mgqe.table.snapshot import Snapshot

if TYPE_CHECKING:
    from typing_extensions import Self


class CompactTable(FrozenTable):
    """A frozen table of packed codes and centroids, made by ``embedding.freeze()`` or :meth:`from_codes`.

    ``lookup`` of an id finds its tier and its rank there, reads the rank's packed row of D_g codes, and joins
    the D_g centroids they name. Tensors are not copied (a loaded file stays mapped): do not change them.

    One table serves any number of threads, without a lock, also while a thread appends or updates ids: every call
    reads the table as it was when the call began.

    Attributes:
        origin: the file that the table was last read from or written to, for :mod:`mgqe.table.io`; or None.
    """

    kind = KIND

    def __init__(self, snapshot: Snapshot) -> None:
        """From tensors that fit together; :meth:`from_codes` and :meth:`from_tensors` check that they do."""
        # Readers take this reference once, writers replace it: a reader sees a table before or after a change.
        self._snapshot = snapshot
        self._writer = WriterLock()
        self.origin: Origin | None = None

    @property
    def snapshot(self) -> Snapshot:
        """What the table holds now, which never changes; internal to this library."""
        return self._snapshot

    @property
    def config(self) -> TableLayout:
        """The plain numbers of the table, appended ids included."""
        return self._snapshot.layout

    @property
    def num_embeddings(self) -> int:  # type: ignore[override]
        """N, appended ids included."""
        return self._snapshot.layout.num_embeddings

    @property
    def embedding_dim(self) -> int:  # type: ignore[override]
        """d."""
        return self._snapshot.layout.embedding_dim

    @property
    def padding_idx(self) -> int | None:  # type: ignore[override]
        """The id that looks up as zeros, or None."""
        return self._snapshot.layout.padding_idx

    @property
    def num_tiers(self) -> int:
        """m."""
        return self._snapshot.base.num_tiers

    @property
    def device(self) -> torch.device:
        """The device that holds the table."""
        return self._snapshot.device

    @classmethod
    @outside_inference
    def from_codes(
        cls,
        tiers: Tiers,
        codes: Sequence[Tensor],
        codebooks: Sequence[Tensor],
        codebook_of: Sequence[int],
        num_centroids: Sequence[int],
        padding_idx: int | None = None,
        centroid_dtype: str = "float32",
    ) -> CompactTable:
        """A table from unpacked codes.

        Args:
            tiers: which id is in which tier; a tier map is made unless they are in frequency order.
            codes: of each tier: integers (n_g, D_g) in [0, num_centroids[g]), rows in ascending id order.
            codebooks: float (Dc, Kc, sc) each. A tier with D_g subspaces of s = d / D_g dimensions reads
                r = s / sc pieces for each, Dc = D_g * r; or Dc = 1: its subspaces share one set of centroids.
            codebook_of: each tier's codebook.
            num_centroids: each tier's K_g, at most Kc of its codebook.
            padding_idx: the id that looks up as zeros.
            centroid_dtype: how centroids are stored: "float32"; "float16"; or "int8", symmetric with one
                float32 scale per piece, max |centroid| / 127, rounded half to even.

        Raises:
            ValueError: arguments that do not fit together, codes out of range, centroids that are not finite, or
                too large for float16.
            TypeError: codes that are not integers.
        """
        tensors, layout = lay_out(tiers, codes, codebooks, codebook_of, num_centroids, padding_idx, centroid_dtype)
        return cls.from_tensors(tensors, layout.to_json())

    @classmethod
    @outside_inference
    def from_mixed_codes(
        cls,
        tiers: Tiers,
        codes: Sequence[Tensor],
        codebooks: Sequence[Tensor],
        codebook_of: Sequence[int],
        widths: Sequence[int],
        code_bits: Sequence[Sequence[int]],
        padding_idx: int | None = None,
        centroid_dtype: str = "float32",
        *,
        mean: Tensor | None = None,
        matrix: Tensor | None = None,
        matrix_dtype: str = "float16",
    ) -> CompactTable:
        """A mixed table from unpacked codes: its subspaces may differ in width, and its codes in bits.

        Args:
            tiers: as in :meth:`from_codes`, like ``padding_idx`` and ``centroid_dtype``.
            codes: of each tier: integers (n_g, D), code j below 2 to the power of its bits, rows in ascending
                id order.
            codebooks: flat, float (sum of K_j * widths[j],): the K_j centroids of subspace 0, then those of subspace 1,
                and so on. K_j is 2**bits, where bits are the most that a tier which reads the codebook has for j.
            codebook_of: each tier's codebook.
            widths: how many coordinates each of the D subspaces has.
            code_bits: of each tier, the bits of each of its D codes, 0 to 16. With 0 bits every row has centroid 0.
            mean, matrix: floats (d,) and (L, d), where rows are mean + coordinates @ matrix. Without them rows are
                their coordinates, L = d.
            matrix_dtype: how the matrix is stored: "float32", "float16", or "int8" with a float32 scale per coordinate.
                "int8_columns" has a scale per column instead, and centroids must be whole numbers from -127 to 127: the
                fastest to look up.

        Raises:
            ValueError: arguments that do not fit together, codes out of range, centroids, a mean or a matrix that are
                not finite, or too large for float16.
            TypeError: codes that are not integers.
        """
        if (mean is None) != (matrix is None):
            raise ValueError(
                f"expected a mean and a matrix, or neither, got {'a mean' if matrix is None else 'a matrix'}"
            )
        transform = None if mean is None or matrix is None else Transform.of(mean.cpu(), matrix.cpu(), matrix_dtype)
        tensors, layout = lay_out_mixed(
            tiers, codes, codebooks, codebook_of, widths, code_bits, padding_idx, centroid_dtype, transform
        )
        return cls.from_tensors(tensors, layout.to_json())

    @classmethod
    def from_faiss(cls, index: Any) -> CompactTable:
        """A table with the codes and centroids of a faiss index, of one tier; nothing is trained.

        Look-ups give what ``index.reconstruct`` does: the same float32 numbers, behind a rotation to rounding. The
        table's top-K is by inner product or cosine, whatever the metric of the index.

        Args:
            index: an ``IndexPQ`` with codes of at most 16 bits, or an ``IndexPreTransform`` of an orthonormal transform
                (OPQ) and one. An index with ids of its own is read by ``mgqe convert``.

        Raises:
            TypeError, ValueError: another index; the message says what to do. ImportError: faiss is not installed.
        """
        found = faiss_codes(index)
        tiers = Tiers.from_sizes([len(found.codes)])
        if found.matrix is None or found.mean is None:
            return cls.from_codes(tiers, [found.codes], [found.centroids], [0], [1 << found.bits])
        subspaces, _, width = found.centroids.shape
        return cls.from_mixed_codes(
            tiers, [found.codes], [found.centroids.reshape(-1)], [0], [width] * subspaces, [[found.bits] * subspaces],
            mean=found.mean, matrix=found.matrix, matrix_dtype="float32",
        )  # fmt: skip

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """From the tensors and configuration that :meth:`to_tensors` gives; docs/format.md describes each one.

        Of the values only those of the tier map are read, by which all others are reached: see :meth:`validate`.

        Raises:
            ValueError: tensors that do not fit together, a tier map that does not give each id another row.
        """
        return cls(Snapshot.from_tensors(tensors, config))

    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """``codes.g``, ``centroids.c``, ``scales.c`` (int8), ``tier_map.bits.l`` and ``.ranks.l``, ``fallback``; of
        mixed tables with a matrix also ``mean``, ``matrix`` and ``matrix_scales`` or ``column_scales`` (int8).

        For a table with appended ids: what a table made with all ids would have. That copies the codes, and makes
        a tier map (with N bytes in between) unless appended ids keep the tiers ranges in tier order.
        """
        chunks, config = self.tensor_chunks()
        return {name: of_one[0] if len(of_one) == 1 else torch.cat(of_one) for name, of_one in chunks.items()}, config

    def tensor_chunks(self) -> tuple[dict[str, list[Tensor]], Config]:
        """Each tensor of :meth:`to_tensors` as chunks to join: without a copy of the codes."""
        snapshot = self._snapshot
        return snapshot.tensor_chunks(), snapshot.layout.to_json()

    # ---- reading: any number of threads, no lock, also while another thread changes the table ---------------

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., d); zeros for ``padding_idx``. ``table[ids]`` is the same.

        Ids are a tensor, an array, a list, or one integer.

        Ids outside [0, num_embeddings), negative ones included, give :attr:`fallback` if there is one.

        Raises TypeError for ids that are not integers, IndexError for unknown ids without a fallback.
        """
        return self._snapshot.lookup(as_int64(plain_ids(ids)))

    def topk(
        self,
        queries: Tensor,
        k: int,
        exclude: Ids | None = None,
        candidates: Ids | None = None,
        score: str = "dot",
        bias: Tensor | ItemBias | None = None,
    ) -> TopK:
        """The k ids whose vectors score highest with each query, exactly, without decoding the table.

        Args:
            queries: (d,) or (B, d), a tensor of float32, float16 or bfloat16, or an array or a list of numbers.
            k: 1 to N.
            exclude: ids not to return, such as items seen: (n,) for all queries; (B, n), -1 for no id; B tensors; or
                a bool mask (N,) or (B, N), True for ids to leave out. Arrays, and lists of ids per query, will do.
            candidates: the only ids to return, in the same forms; in a mask True for ids to keep. A few are fetched
                one by one, many filtered out of the search.
            score: "dot", the inner product, or "cosine". A row or a query of zeros has cosine 0. That of a row shorter
                than about 1e-19 is rough, or 0: its squared length is below float32's normal numbers.
            bias: (N,) added to the scores: popularity, a margin. Given as a tensor it is sorted into levels at every
                call, which costs more than the search: make :meth:`item_bias` once.

        Returns:
            scores float32 (B, k), falling, and ids int64 (B, k), ascending among equal scores; (k,) for one query.
            The scores are those of the decoded vectors to float32 rounding, and the same bits whatever the batch,
            threads or instruction set. Where fewer than k ids may be returned, the rest is -infinity and -1. The
            row of ``padding_idx`` is zeros and scores 0 like any other: exclude it if it must not be returned.

        Raises:
            TypeError: dtypes. ValueError: shapes, NaN or infinite queries or biases, k outside 1 .. N, a bias with
                cosine; a query whose scores may leave float32, or, for cosine, a row whose squared length does, both
                named.
            IndexError: an id outside the table.
        """
        return search(self._snapshot.lookup, plain_vectors(queries, "queries"), k, exclude, candidates, score, bias)

    def item_bias(self, bias: Tensor) -> ItemBias:
        """Biases (N,), sorted once for many calls of :meth:`topk`; 5 bytes per id. Make it again after an append.

        Raises:
            TypeError: no float tensor. ValueError: another shape or device, NaN or infinity.
        """
        return item_bias(self._snapshot.lookup, bias)

    def _bag(self, *bags: Any) -> Tensor:
        return ops.bag(self._snapshot.lookup, *bags)  # straight from the codes: the rows are never in memory

    def codes(self, ids: Tensor) -> Tensor:
        """Codes of ids: integers (...) -> int32 (..., max D_g), -1 beyond the D_g of a coarser tier."""
        snapshot = self._snapshot
        layout = snapshot.layout
        ids = check_ids(plain_ids(ids), layout.num_embeddings)
        array, row = snapshot.locate_in_arrays(ids)
        out = torch.full((*ids.shape, max(layout.num_subspaces)), -1, dtype=torch.int32, device=ids.device)
        for a, (g, packed) in enumerate(zip(snapshot.tier_of_array, snapshot.arrays, strict=True)):
            mine, tier = array == a, layout.tiers[g]
            out[..., : tier.num_subspaces][mine] = unpack(packed[row[mine]], tier.num_subspaces, tier.packing)
        return out

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Each id's tier, uint8 (...), and its rank among the ascending ids of that tier, int64 (...)."""
        snapshot = self._snapshot
        return snapshot.locate(check_ids(plain_ids(ids), snapshot.layout.num_embeddings))

    @property
    def tiers(self) -> Tiers:
        """The tiers, worked out from the tier map and the ranges of appended ids: the table has no list of them."""
        return self._snapshot.tiers()

    @property
    def fallback(self) -> Tensor | None:
        """What unknown ids look up as, float32 (d,); None: they are an IndexError. See :meth:`with_fallback`."""
        return self._snapshot.fallback

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, spare room for appended ids included."""
        return sum(self._snapshot.nbytes_by_part().values())

    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes of ``codes``, ``centroids``, ``scales`` and ``tier_map``, and of ``mean``, ``matrix``,
        ``matrix_scales``, ``column_scales`` and ``fallback`` if there are any: the sum is ``nbytes``."""
        return self._snapshot.nbytes_by_part()

    def assign(self, vectors: Tensor, tier: int | None = None) -> Tensor:
        """Codes for vectors: in every subspace the nearest centroid that a tier can reach (DPQ eq. 5, MGQE eq. 5).

        Args:
            vectors: (n, d) float32, float16 or bfloat16.
            tier: default: the last, where rare and new ids live.

        Returns:
            int32 (n, D_g), nearest by squared distance to the centroids as they decode; the lowest code on ties. Where
            rows are mean + coordinates @ matrix, distances are those of the coordinates that come nearest to a vector.

        Raises:
            TypeError: no float tensor, a tier that is no integer. ValueError: another shape or device, NaN or infinity,
                a tier that does not exist.
        """
        vectors = check_vectors(vectors, self.embedding_dim, self.device)
        return self._snapshot.encode(vectors, check_tier(tier, self.num_tiers))

    def to_faiss(self) -> Any:
        """A faiss index whose search returns the ids and scores of :meth:`topk`, up to ties and rounding.

        Tiers that read one codebook in as many subspaces (D_g) go into one ``faiss.IndexPQ`` of inner products, each
        code as wide as the widest of them needs: a table of one tier, or of tiers that differ in K alone, is one
        IndexPQ. Others make a ``faiss.IndexShards`` with an IndexPQ for each D_g and codebook, which finds the same,
        but has no ``write_index``, no ``reconstruct``, and an ``add`` that knows no tiers (an error in frequency
        order). Unless ids are in frequency order, each is in an ``IndexIDMap``.

        The row of ``padding_idx`` scores 0 here too: its codes name a centroid of zeros, which takes a spare code or,
        where K is a power of two, one more bit per code; faiss searches 9 bits at about a third of the speed of 8.

        The index is a copy and does not follow changes of the table: n * ceil(D * bits / 8) bytes of codes (bits are at
        least 3 in subspaces of 2 dimensions, which faiss demands), 4 * 2**bits * d of float32 centroids for an IndexPQ,
        8 per id for IDMaps; and while it is made, the codes once more and about 16 bytes per id.

        Raises:
            ImportError: faiss is not installed, ``pip install 'mgqe[faiss]'``.
            ValueError: a mixed table, since faiss has one width and one number of bits for all codes of an index;
                ``padding_idx`` in a tier of 65,536 centroids, which leave no 16-bit code for zeros.
        """
        return to_faiss(self._snapshot)

    # ---- changing: writers wait for each other, readers for no one -----------------------------------------

    @outside_inference
    def append(self, vectors: Tensor, tier: int | None = None) -> Tensor:
        """Add ids for vectors, in place; they can be looked up when this returns.

        The rows of the table are not copied or moved: new rows go into further memory, which grows by doubling.
        A change of tier from one call to the next starts another range of ids, which a look-up has to tell apart,
        and the 256th range merges all of them, which copies every code once (into memory, if they were in a mapped
        file). So append tier by tier where there is much to append.

        Args:
            vectors: (n, d) float32, float16 or bfloat16.
            tier: whose centroids the ids get: default: the last.

        Returns:
            int64 (n,): the new ids, N to N + n - 1.

        Raises:
            TypeError, ValueError: as :meth:`assign`.
        """
        g = check_tier(tier, self.num_tiers)
        vectors = check_vectors(vectors, self.embedding_dim, self.device)
        rows = self._snapshot.packed(vectors, g)
        return self.append_packed(rows, g)

    def append_packed(self, rows: Tensor, tier: int) -> Tensor:
        """:meth:`append` of rows that are packed for this tier already, uint8 (n, row_bytes); internal."""
        with self._writer:
            first = self._snapshot.layout.num_embeddings
            if rows.shape[0]:
                self._snapshot = self._snapshot.appended(rows, tier)
        return torch.arange(first, first + rows.shape[0], device=rows.device)

    @outside_inference
    def update(self, ids: Tensor, vectors: Tensor) -> None:
        """Give ids the codes of other vectors, each id within its own tier, in place, all at once.

        Copies the codes of each tier that has such an id (n_g * ceil(D_g * bits_g / 8) bytes; of ids appended to it,
        those alone), so that readers keep what they are reading and a mapped file stays as it is: collect many
        updates into one call.

        Args:
            ids: integers (n,), none twice.
            vectors: (n, d) float32, float16 or bfloat16.

        Raises:
            TypeError: no integers, no float vectors. IndexError: an unknown id. ValueError: an id twice, or
                ``padding_idx``, which always looks up as zeros; shapes or devices that do not fit, NaN or infinity.
        """
        snapshot = self._snapshot  # an id's tier never changes, nor do centroids
        layout = snapshot.layout
        known = check_update_ids(plain_ids(ids), layout.num_embeddings, layout.padding_idx, snapshot.device)
        values = check_vectors(vectors, layout.embedding_dim, snapshot.device)
        if values.shape[0] != known.shape[0]:
            raise ValueError(f"ids and vectors must be as many, got {known.shape[0]} and {values.shape[0]}")
        if not known.numel():
            return
        tier = snapshot.locate(known)[0]
        widths = [shape.row_bytes for shape in layout.tiers]
        rows = torch.empty((known.shape[0], max(widths)), dtype=torch.uint8, device=snapshot.device)
        for g in torch.unique(tier).tolist():
            rows[tier == g, : widths[g]] = snapshot.packed(values[tier == g], g)
        with self._writer:
            self._snapshot = self._snapshot.updated(known, rows)

    @outside_inference
    def with_fallback(self, vector: Tensor | None) -> CompactTable:
        """The same table, but unknown ids look up as ``vector`` (d,), or are refused again with None.

        Shares all memory with this one; ids appended to one of the two later are not in the other.

        Raises:
            TypeError, ValueError: no float tensor of shape (d,), another device, NaN or infinity.
        """
        if vector is not None:
            vector = check_fallback(vector, self.embedding_dim, self.device)
        other = type(self)(replace(self._snapshot, fallback=vector))
        other._writer = self._writer  # both append into the same spare room
        other.origin = self.origin
        return other

    @property
    def is_turned(self) -> bool:
        """Whether rows are coordinates that are multiplied with a matrix; not where that is the identity."""
        transform = self._snapshot.transform
        return transform is not None and transform.turns

    @outside_inference
    def coordinates(self, with_mean: bool = True) -> tuple[CompactTable, Tensor]:
        """A table of the coordinates of the rows, which look-ups need not multiply, and the matrix to do it with.

        For a model whose next step is linear: :func:`mgqe.fold_matrix` multiplies a linear layer's weights once. The
        codes are shared with this table, and files of the new one are of the usual format. There may be a few more
        coordinates than :attr:`TableLayout.num_coordinates`, for the mean, and for vectors that are fast to write.

        Args:
            with_mean: whether a coordinate, the same of all ids but padding's, stands for the mean. So it is right for
                padding, for bags, and for empty ones.

        Returns:
            the table, and the matrix, float32 (L, d): ``table.lookup(ids) @ matrix`` are the rows of this table, apart
            from rounding. Without a mean these are the rows less the mean, but for padding.

        Raises:
            ValueError: a table without a matrix; a fallback that no coordinates give.
        """
        transform = self._snapshot.transform
        if transform is None or not transform.turns:
            raise ValueError("the rows of this table are not multiplied with a matrix: look it up as it is")
        snapshot, matrix = in_coordinates(self._snapshot, transform, with_mean)
        return type(self)(snapshot), matrix

    def to(self, device: torch.device | str) -> Self:
        """The same table on another device."""
        with memory_for(f"a frozen table of {self.nbytes:,} bytes", "Look-ups, bags and searches run on the CPU, too"):
            moved = super().to(device)
        moved.origin = self.origin
        return moved

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy saved over the file that this table came from must not lose more ids than the table itself would.
        return *super().__reduce__(), {"origin": self.origin}

    def _unchanging(self) -> CompactTable:
        return type(self)(self._snapshot)

    # ---- looking into it ------------------------------------------------------------------------------------

    def codebook_stats(self) -> list[CodebookStats]:
        """For each tier: centroids in use against those it can reach, and perplexity; one sweep over all codes.

        Where all subspaces share one codebook, the codes of all of them are counted as one.
        """
        return self._snapshot.codebook_stats()

    def validate(self) -> None:
        """Read what a look-up trusts, and raise ValueError if it cannot be right.

        Reads centroids and the tier map whole; codes only where one can be out of range (K_g is no power
        of two) or a row has spare bits.
        """
        self._snapshot.validate()

    def _describe(self) -> str:
        layout = self.config
        if layout.widths:
            tiers = [tier.describe() for tier in layout.tiers]
            turned = "" if layout.matrix_dtype is None else f"; {layout.num_coordinates} coordinates turned"
        else:
            tiers = [f"{tier.ids:,} ids of {tier.num_subspaces} codes of {tier.bits} bits" for tier in layout.tiers]
            turned = ""
        return f"{'; '.join(tiers)}; {layout.centroid_dtype} centroids{turned}"
