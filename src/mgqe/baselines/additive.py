"""Additive codes: rows that are sums of codewords, chosen one after another (LightRec, Lian et al., WWW 2020)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe import ops
from mgqe.baselines.base import (
    ComposedEmbedding,
    check_centroids,
    check_packed_codes,
    cpu_values,
    distinct,
    read_sizes,
    sizes_of,
)
from mgqe.baselines.budget import TooFewBytesError, blank, centroids_up_to, file_nbytes, most_within
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_float, as_int, optional_int
from mgqe.checks.waiting import reads_wait
from mgqe.codec.equations import in_int8_steps, int8_scales, nearest_codes, round_centroids, soft_to_hard
from mgqe.codec.kmeans import kmeans
from mgqe.codec.packing import bits_for, pack, row_bytes, unpack
from mgqe.files.reader import Config, Reader, require_finite
from mgqe.nn.quantizers.autograd import ScaleGradient
from mgqe.ops.layout.packed_format import MAX_CENTROIDS
from mgqe.table.base import FrozenTable
from mgqe.table.io import register_kind

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_SEED = 2**31 - 1
MAX_CODEBOOKS = 1024
CHUNK_ROWS = 1 << 14
LEAST_CENTROIDS, IDS_OF_CODEWORD = 16, 50  # of the K that a budget chooses
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


@register_kind
class AdditiveTable(FrozenTable):
    """``codes`` uint8 (N, row_bytes), M of each id, packed; ``codebooks`` (M, K, d) in float32, float16 or int8 with
    ``scales`` float32 (M, 1, 1). A row is the sum of the codewords that its codes name, one of each codebook.
    """

    kind = "additive"

    def __init__(self, codes: Tensor, codebooks: Tensor, scales: Tensor | None, padding_idx: int | None) -> None:
        self.codes = codes
        self.codebooks = codebooks
        self.scales = scales
        self.num_embeddings = codes.shape[0]
        self.num_codebooks, self.num_centroids, self.embedding_dim = codebooks.shape
        self.padding_idx = optional_int("padding_idx", padding_idx)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., d), added in float32 in the order of the codebooks."""
        rows = self._rows(ids)
        codes = unpack(self.codes[rows.reshape(-1)], self.num_codebooks, bits_for(self.num_centroids))
        vectors = torch.zeros(len(codes), self.embedding_dim, dtype=torch.float32, device=codes.device)
        for m in range(self.num_codebooks):
            words = F.embedding(codes[:, m].long(), self.codebooks[m]).float()
            vectors = vectors + (words if self.scales is None else words * self.scales[m])
        return self._zero_padding(rows, vectors.view(*rows.shape, self.embedding_dim))

    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """``codes``, ``codebooks`` and, of int8, ``scales``."""
        tensors = {"codes": self.codes, "codebooks": self.codebooks}
        names = {dtype: name for name, dtype in DTYPES.items()}
        return tensors if self.scales is None else {**tensors, "scales": self.scales}, {
            **sizes_of(self),
            "num_codebooks": self.num_codebooks,
            "num_centroids": self.num_centroids,
            "centroid_dtype": names[self.codebooks.dtype],
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """The inverse of :meth:`to_tensors`."""
        reader = Reader(tensors, config)
        n, d, padding_idx = read_sizes(reader)
        books = reader.integer("num_codebooks", 1, MAX_CODEBOOKS)
        centroids = reader.integer("num_centroids", 1, MAX_CENTROIDS)
        name = reader.choice("centroid_dtype", DTYPES.keys())
        codes = reader.tensor("codes", torch.uint8, (n, row_bytes(books, bits_for(centroids))))
        codebooks = reader.tensor("codebooks", DTYPES[name], (books, centroids, d))
        scales = reader.tensor("scales", torch.float32, (books, 1, 1)) if name == "int8" else None
        reader.finish()
        return cls(codes, codebooks, scales, padding_idx)

    def validate(self) -> None:
        """Codebooks and scales must be finite, codes name a codeword, and spare bits be zero."""
        if self.scales is not None:
            require_finite("scales", self.scales)
        require_finite("codebooks", self.codebooks)
        check_packed_codes(self.codes, self.num_codebooks, self.num_centroids)

    def _describe(self) -> str:
        return f"{self.num_codebooks} codebooks of {self.num_centroids:,} codewords"


class AdditiveEmbedding(ComposedEmbedding):
    """Rows that are sums of codewords, one of each of M codebooks, which all span the d coordinates.

    An id has a row q in training. Codebook m chooses for what is left of it: r_1 = q, code_m is the nearest centroid
    (codeword) of r_m in C_m, and r_(m+1) = r_m - C_m,code_m. Forward, e = C_1,code_1 + ... + C_M,code_M. Backward, each
    choice is the softmax of -||r_m - C_mk||^2 over k, divided by ``temperature`` times the batch's mean of the smallest
    of these distances, so that the task's gradient reaches the rows and all codebooks. There is no other loss.

    Different from the paper: choices go by distances, where it has a bilinear form; codebooks are free, where it makes
    them one from another by a recurrent net; there is no distillation; and in ``mgqe train`` the rows are first trained
    as a full table, like those of MGQE and DPQ, and :meth:`start_quantizing` starts the codebooks by k-means of what is
    left (residual quantisation; Chen, Guan and Wang, Sensors 2010).

    Arguments up to ``dtype`` are nn.Embedding's (``max_norm`` must be None).

    Args:
        num_codebooks: M; default d / 8, at least 1.
        num_centroids: K per codebook; default 256, or fewer where there are fewer rows.
        centroid_dtype: how the frozen table holds codewords: "float32", "float16" or "int8" with a scale per codebook;
            training already rounds to it.
        temperature: of the softmax.
        seed: of k-means, 0 to 2**31 - 1.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d).

    Raises:
        ValueError: sizes or options out of range, or a ``max_norm``.
        IndexError, TypeError: in the forward pass, ids out of range or not integers.
    """

    printed = ("num_codebooks", "num_centroids")

    @outside_inference
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *torch_arguments: Any,
        num_codebooks: int | None = None,
        num_centroids: int | None = None,
        centroid_dtype: str = "float32",
        temperature: float = 1.0,
        seed: int = 0,
        **torch_keywords: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, *torch_arguments, **torch_keywords)
        default = max(1, self.embedding_dim // 8)
        books = default if num_codebooks is None else as_int("num_codebooks", num_codebooks, 1, MAX_CODEBOOKS)
        self.num_codebooks, self.num_centroids = books, check_centroids(num_centroids, self.num_embeddings)
        if centroid_dtype not in DTYPES:
            raise ValueError(f"centroid_dtype must be one of {sorted(DTYPES)}, got {centroid_dtype!r}")
        self.centroid_dtype = centroid_dtype
        self.temperature = as_float("temperature", temperature)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.seed = as_int("seed", seed, 0, MAX_SEED)
        self.weight = self._parameter(self.num_embeddings, self.embedding_dim)
        self.codebooks = self._parameter(books, self.num_centroids, self.embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw rows with variance 1, as in nn.Embedding, and codewords so that sums of them have it, too."""
        with torch.no_grad():
            self.weight.normal_()
            self.codebooks.normal_(std=self.num_codebooks**-0.5)

    @classmethod
    def within(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        nbytes: int,
        *,
        num_codebooks: int | None = None,
        num_centroids: int | None = None,
        centroid_dtype: str = "int8",
        **given: Any,
    ) -> dict[str, Any]:
        """Keywords for a file of at most ``nbytes``: int8 codewords, K by the ids, and the most codebooks.

        K is the largest power of two, from 16 to 256, of which each codeword has 50 ids; smaller where it does not fit.
        Where M is given, it is the largest that fits.

        Raises TooFewBytesError, a ValueError, if nothing fits.
        """
        if centroid_dtype not in DTYPES:
            return {}  # the constructor says what is wrong

        def nbytes_of(books: int, centroids: int) -> int:
            codes = blank(num_embeddings, row_bytes(books, bits_for(centroids)), dtype=torch.uint8)
            words = blank(books, centroids, embedding_dim, dtype=DTYPES[centroid_dtype])
            scales = blank(books, 1, 1) if centroid_dtype == "int8" else None
            return file_nbytes(AdditiveTable(codes, words, scales, None))

        size = (num_embeddings, embedding_dim)
        if num_centroids is None:
            usable = centroids_up_to(num_embeddings)
            if num_codebooks is None:
                usable = [k for k in usable if k <= max(LEAST_CENTROIDS, num_embeddings // IDS_OF_CODEWORD)]
            books = num_codebooks or 1
            num_centroids = most_within(usable, lambda centroids: nbytes_of(books, centroids), nbytes, size)
        if num_codebooks is None:
            numbers, centroids = range(1, MAX_CODEBOOKS + 1), num_centroids
            num_codebooks = most_within(numbers, lambda books: nbytes_of(books, centroids), nbytes, size)
        elif (taken := nbytes_of(num_codebooks, num_centroids)) > nbytes:
            raise TooFewBytesError(nbytes, taken, *size)
        return {"num_codebooks": num_codebooks, "num_centroids": num_centroids, "centroid_dtype": centroid_dtype}

    def forward(self, input: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> (..., d)."""
        ids = self._safe_ids(input)
        flat, training = ids.reshape(-1), self.training and torch.is_grad_enabled()
        books = self._rounded_codebooks()
        if training:  # each distinct id chooses once
            flat, inverse, counts = distinct(flat)
        rows = F.embedding(flat, self.weight, sparse=self.sparse).float()
        if training:
            vectors = mix(rows, books, self.temperature, counts if reads_wait(flat.device) else None)
            vectors = vectors.index_select(0, inverse)
            if self.scale_grad_by_freq:
                weights = counts[inverse].float().reciprocal()
                vectors = ScaleGradient.apply(vectors, weights)  # type: ignore[no-untyped-call]
        else:
            vectors = decode(encode(rows.detach(), books), books)
        return self._zero_padding(ids, vectors.to(self.weight.dtype).view(*ids.shape, self.embedding_dim))

    def _rounded_codebooks(self) -> Tensor:
        return round_centroids(self.codebooks.float(), self.centroid_dtype)

    @outside_inference
    @torch.no_grad()
    def start_quantizing(self) -> None:
        """Start the codebooks on the rows as they are, one after another, by k-means of what is left of the rows.

        Raises:
            ValueError: the rows hold NaN or infinity.
        """
        left = cpu_values(self, "weight").float()
        if self.padding_idx is not None:
            left = left[torch.arange(len(left)) != self.padding_idx]
        if not len(left):
            return
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(self.seed)
            for m in range(self.num_codebooks):
                book = kmeans([(left, 1)], left.new_empty(1, 0, self.embedding_dim), self.num_centroids, generator)
                self.codebooks[m].copy_(book[0])
                book = round_centroids(book, self.centroid_dtype)
                left = left - ops.gather(nearest_codes(left, book, 1, self.num_centroids), book)

    @outside_inference
    @torch.no_grad()
    def freeze(self) -> FrozenTable:
        """Choose all ids' codewords: look-ups equal the eval-mode forward pass."""
        rows, books = cpu_values(self, "weight"), cpu_values(self, "codebooks").float()
        rounded = round_centroids(books, self.centroid_dtype)
        codes = torch.empty(self.num_embeddings, self.num_codebooks, dtype=torch.int32)
        for start in range(0, self.num_embeddings, CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            codes[chunk] = encode(rows[chunk].float(), rounded)
        scales = int8_scales(books) if self.centroid_dtype == "int8" else None
        stored = (books if scales is None else in_int8_steps(books, scales)).to(DTYPES[self.centroid_dtype])
        return AdditiveTable(pack(codes, bits_for(self.num_centroids)), stored, scales, self.padding_idx)


def encode(rows: Tensor, codebooks: Tensor) -> Tensor:
    """Rows (n, d) -> codes int32 (n, M): the nearest codeword of each codebook to what the ones before leave."""
    codes = []
    for book in codebooks.unsqueeze(1):  # (1, K, d), as of one subspace
        codes.append(nearest_codes(rows, book, 1, book.shape[1]))
        rows = rows - ops.gather(codes[-1], book)
    return torch.cat(codes, 1)


def decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Codes (n, M) -> the sum of their codewords (n, d), in the order of the codebooks."""
    vectors = codebooks.new_zeros(len(codes), codebooks.shape[2])
    for code, book in zip(codes.unbind(1), codebooks, strict=True):
        vectors = vectors + F.embedding(code.long(), book)
    return vectors


def mix(rows: Tensor, codebooks: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """What :func:`decode` makes of the codes of :func:`encode`, with a softmax's gradient for rows and codebooks.

    Args:
        rows: (n, d) float32. codebooks: (M, K, d) float32.
        temperature: in units of the mean squared distance of the rows' remainders to their nearest codeword.
        counts: (n,), 0 for rows that this mean leaves out; None: none is.
    """
    left, vectors = rows, torch.zeros_like(rows)
    present = None if counts is None else (counts > 0).to(rows.dtype)
    for book in codebooks:
        code = nearest_codes(left.detach(), book.detach().unsqueeze(0), 1, len(book))
        scores = 2 * left @ book.T - book.square().sum(1)  # -||r - C_k||^2, but for ||r||^2, which all k share
        scores = scores - scores.detach().amax(1, keepdim=True)  # so that a tiny unit makes no infinity less infinity
        near = (left.detach() - F.embedding(code[:, 0].long(), book.detach())).square().sum(1)
        mean = near.mean() if present is None else (near * present).sum() / present.sum().clamp(min=1)
        unit = (temperature * mean).clamp(min=torch.finfo(rows.dtype).tiny)
        word = soft_to_hard((scores / unit).unsqueeze(1), code, 1.0).squeeze(1) @ book
        left, vectors = left - word, vectors + word
    return vectors
