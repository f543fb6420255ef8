"""Top-K in pure torch: the oracle of the native kernels, and what other devices run on."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.ops._descriptor import TableBuffers
from mgqe.ops._topk_job import IdLists, TopKJob
from mgqe.ops.reference import codes_of, lookup, tiers_and_ranks

_ROWS_AT_ONCE = 1 << 16
_QUERIES_AT_ONCE = 64
MAX_KEYED_IDS = 2**32 - 1  # beside a score in 64 bits
LEAST_KEY = -(2**63)  # of no row: no score has its upper half


def topk(table: TableBuffers, job: TopKJob) -> tuple[Tensor, Tensor, int]:
    """See :func:`mgqe.ops.topk`; every row is scored."""
    queries, n = job.queries, table.num_embeddings
    results = [_topk_of(table, job, start) for start in range(0, queries.shape[0], _QUERIES_AT_ONCE)]
    if not results:
        return queries.new_empty((0, job.k)), queries.new_empty((0, job.k), dtype=torch.int64), 0
    return torch.cat([s for s, _ in results]), torch.cat([i for _, i in results]), n * queries.shape[0]


def partial_scores(book: Tensor, pieces: Tensor | None, num_subspaces: int) -> Tensor:
    """<piece, centroid> of a float codebook ``(Dc, K, w)``, summed in order: ``(B, D, K)``.

    Args:
        pieces: of the queries, ``(B, D * r, w)``; None for the centroids' squared norms, ``(1, D, K)``.
    """
    left = book[None] if pieces is None else pieces[:, :, None, :]
    right = book[None]
    sums = left[..., 0] * right[..., 0]
    for t in range(1, book.shape[2]):
        sums = sums + left[..., t] * right[..., t]
    if pieces is None and book.shape[0] == 1:
        sums = sums.expand(1, num_subspaces, -1)
    by_subspace = sums.reshape(sums.shape[0], num_subspaces, -1, sums.shape[2])
    total = by_subspace[:, :, 0]
    for r in range(1, by_subspace.shape[2]):
        total = total + by_subspace[:, :, r]
    return total


def _entries(tables: Tensor, codes: Tensor) -> Tensor:
    """Partial scores ``(B, D, K)`` that codes ``(n, D)`` name, summed in the order of subspaces: ``(B, n)``."""
    sums = tables[:, 0, codes[:, 0]]
    for j in range(1, codes.shape[1]):
        sums = sums + tables[:, j, codes[:, j]]
    return sums


def check_range(table: TableBuffers, job: TopKJob) -> None:
    """Raise ValueError for the first query whose scores may leave float32, or, for cosine, the first row whose squared
    length does."""
    most = torch.finfo(torch.float32).max
    bias = 0.0 if job.bias is None or job.bias.bias.numel() == 0 else float(job.bias.bias.abs().max())
    for start in range(0, job.queries.shape[0], _QUERIES_AT_ONCE):
        tables, _ = tables_of(table, job.queries[start : start + _QUERIES_AT_ONCE], False)
        for g, scores in enumerate(tables):
            if table.sizes[g]:
                largest = scores[:, :, : 1 << table.bits[g]].abs().double().amax(2).sum(1) + bias
                if not bool((largest <= most).all()):
                    query = start + int((~(largest <= most)).nonzero()[0])
                    raise ValueError(
                        f"the scores of query {query} may leave float32, whose largest number is {most:.3g}: scale the "
                        "query down, or the table it is scored with (table.validate() tells whether it holds NaN or "
                        "infinity)"
                    )
    if job.cosine:
        _check_lengths(table)


def _check_lengths(table: TableBuffers) -> None:
    for start in range(0, table.num_embeddings, _ROWS_AT_ONCE):
        rows = torch.arange(start, min(start + _ROWS_AT_ONCE, table.num_embeddings), device=table.device)
        decoded = lookup(rows, table)
        lengths = decoded.square().sum(1) if table.matrix is None else squared_lengths(decoded)
        if not bool(lengths.isfinite().all()):
            row = start + int((~lengths.isfinite()).nonzero()[0])
            raise ValueError(
                f"the squared length of row {row} leaves float32, so that it has no cosine: scale the table down "
                "(table.validate() tells whether it holds NaN or infinity)"
            )


def _topk_of(table: TableBuffers, job: TopKJob, first: int) -> tuple[Tensor, Tensor]:
    queries = job.queries[first : first + _QUERIES_AT_ONCE]
    tables, norms = tables_of(table, queries, job.cosine)
    best = queries.new_full((queries.shape[0], job.k), -torch.inf)
    ids = torch.full_like(best, -1, dtype=torch.int64)
    for start in range(0, table.num_embeddings, _ROWS_AT_ONCE):
        rows = torch.arange(start, min(start + _ROWS_AT_ONCE, table.num_embeddings), device=queries.device)
        scores = _scores(table, rows, tables, norms, job.cosine)
        if job.bias is not None:
            scores = scores + job.bias.bias[rows]
        eligible = ~scores.isnan() & allowed_ids(job, rows, first, queries.shape[0])
        eligible_ids = torch.where(eligible, rows, -1)
        scores = torch.where(eligible, scores, -torch.inf)
        best, ids = _merge(torch.cat([best, scores], dim=1), torch.cat([ids, eligible_ids], dim=1), job.k)
    return best, ids


def tables_of(table: TableBuffers, queries: Tensor, cosine: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Partial scores of each tier, and squared norms for cosine."""
    if table.is_mixed:
        return _mixed_tables(table, queries, cosine)
    tables, norms = [], []
    for g in range(len(table.sizes)):
        values = table.values(table.codebook_of[g])
        pieces = queries.reshape(queries.shape[0], -1, values.shape[2])
        tables.append(partial_scores(values, pieces, table.num_subspaces[g]))
        if cosine:
            norms.append(partial_scores(values, None, table.num_subspaces[g]))
    return tables, norms


def _mixed_tables(table: TableBuffers, queries: Tensor, cosine: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The same of a mixed table, with as many entries per subspace as the widest code of a tier can name.

    With a matrix the entries are those of the turned query, <mean, query> is part of those of the first subspace, and
    there are no norms: the squared length of a row is no sum over its subspaces.
    """
    turned, start = turn(table, queries)
    tables, norms = [], []
    for g, number in enumerate(table.codebook_of):
        values, layout = table.values(number), table.pieces(g)
        most = max(1 << piece.bits for piece in layout)
        scores = queries.new_zeros(queries.shape[0], len(layout), most)
        squares = queries.new_zeros(1, len(layout), most)
        for j, piece in enumerate(layout):
            count = 1 << piece.bits
            book = values[piece.entry : piece.entry + count * piece.width].reshape(1, count, piece.width)
            part = turned[:, None, piece.coordinate : piece.coordinate + piece.width]
            scores[:, j, :count] = partial_scores(book, part, 1)[:, 0]
            squares[:, j, :count] = partial_scores(book, None, 1)[:, 0]
        if start is not None:
            scores[:, 0, : 1 << layout[0].bits] += start[:, None]
        tables.append(scores)
        if cosine and table.matrix is None:
            norms.append(squares)
    return tables, norms


def turn(table: TableBuffers, queries: Tensor) -> tuple[Tensor, Tensor | None]:
    """Queries ``(B, d)`` as coordinates meet them: matrix @ query ``(B, L)``, and <mean, query> ``(B,)``.

    Summed over d in order, each product and sum rounded. As they are, and None, without a matrix.
    """
    matrix = table.matrix_values()
    if matrix is None or table.mean is None:
        return queries, None
    scaled = queries if table.column_scales is None else queries * table.column_scales
    turned = scaled[:, :1] * matrix[:, 0]
    start = queries[:, 0] * table.mean[0]
    for t in range(1, matrix.shape[1]):
        turned = turned + scaled[:, t, None] * matrix[:, t]
        start = start + queries[:, t] * table.mean[t]
    return turned, start


def squared_lengths(rows: Tensor) -> Tensor:
    """Of rows ``(n, d)``, summed over d in order: ``(n,)``."""
    total = rows[:, 0] * rows[:, 0]
    for t in range(1, rows.shape[1]):
        total = total + rows[:, t] * rows[:, t]
    return total


def _scores(table: TableBuffers, rows: Tensor, tables: list[Tensor], norms: list[Tensor], cosine: bool) -> Tensor:
    """Scores ``(B, n)`` of ids ``(n,)``, without bias."""
    tier, rank = tiers_and_ranks(rows, table)
    scores = tables[0].new_zeros((tables[0].shape[0], rows.shape[0]))
    for g, entries in enumerate(tables):
        mine = (tier == g).nonzero().squeeze(1)
        if mine.numel() == 0:
            continue
        bits = table.bits_of(g) if table.is_mixed else table.bits[g]
        codes = codes_of(table.codes[g][rank[mine]], table.num_subspaces[g], bits)
        codes = codes.clamp_(max=entries.shape[2] - 1)
        sums = _entries(entries, codes)
        if cosine:
            norm = _entries(norms[g], codes) if norms else squared_lengths(lookup(rows[mine], table))
            sums = cosines(sums, norm)
        scores[:, mine] = sums
    if table.padding_idx >= 0:
        scores[:, rows == table.padding_idx] = 0.0
    return scores


def cosines(sums: Tensor, norm: Tensor) -> Tensor:
    """Sums divided by the roots of squared lengths, 0 where these are."""
    # By way of double, which rounds right; a vector library's float32 root may be off by a bit.
    return torch.where(norm > 0, sums / norm.double().sqrt().float(), 0.0)


def allowed_ids(job: TopKJob, rows: Tensor, first: int, count: int) -> Tensor:
    """Which of the ids ``(n,)`` each query may get: bool ``(B, n)``."""
    allowed = torch.ones((count, rows.shape[0]), dtype=torch.bool, device=rows.device)
    if job.hidden is not None:
        hidden = job.hidden[first : first + count] if job.hidden.dim() == 2 else job.hidden
        allowed &= ~hidden[..., rows]
    if job.excluded is not None:
        allowed &= ~_listed(job.excluded, rows, first, count)
    if job.candidates is not None:
        allowed &= _listed(job.candidates, rows, first, count)
    return allowed


def _listed(lists: IdLists, rows: Tensor, first: int, count: int) -> Tensor:
    spans = lists.spans[first : first + count].tolist()
    return torch.stack([torch.isin(rows, lists.ids[begin:end]) for begin, end in spans])


def _merge(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row: higher scores first, then lower ids, with no id (-1) last."""
    order = torch.where(ids < 0, torch.iinfo(torch.int64).max, ids).argsort(dim=1, stable=True)
    scores, ids = scores.gather(1, order), ids.gather(1, order)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, best), ids.gather(1, best)


def keys_of(scores: Tensor, ids: Tensor) -> Tensor:
    """Scores float32 (B, n), ids int64 (B, n) or (n,), at most MAX_KEYED_IDS -> int64 (B, n): higher ones come first.

    The upper half rises with the score, the lower half falls with the id.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0 has the bits of 0
    rising = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).long() << 32
    return rising | (MAX_KEYED_IDS - ids)


def of_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The scores and the ids of keys (B, k); -infinity and -1 of LEAST_KEY."""
    rising = (keys >> 32).int()
    scores = torch.where(rising >= 0, rising, rising ^ 0x7FFFFFFF).view(torch.float32)
    none = keys == LEAST_KEY
    return scores.masked_fill(none, -torch.inf), (MAX_KEYED_IDS - (keys & MAX_KEYED_IDS)).masked_fill(none, -1)
