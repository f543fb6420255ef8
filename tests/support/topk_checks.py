"""Checks of mgqe.ops.topk: every kernel, method and number of threads against the torch twin, bit for bit."""

import torch

from mgqe import ops
from mgqe.ops import reference_topk

ISAS = ["scalar", "avx2", "avx512", "neon"]


def available(isa):
    try:
        ops.set_native_isa(isa)
    except (ValueError, RuntimeError):
        return False
    return True


def same(found, expected):
    return torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def check_all_paths(parts, job, isas=ISAS, methods=("auto", "scan", "filter", "blocks"), threads=(1, 2)):
    expected = reference_topk.topk(parts, job)
    prepared = ops.PreparedLookup(parts)
    tried = 0
    before = torch.get_num_threads()
    try:
        for isa in isas:
            if not available(isa):
                continue
            for method in methods:
                for team in threads:
                    torch.set_num_threads(team)
                    found = ops.topk(prepared, job, method)
                    assert same(found, expected), (isa, method, team)
                    tried += 1
    finally:
        torch.set_num_threads(before)
    assert tried or not ops.native_available()
    return expected


def check_all_questions(parts):
    """Exclusions, candidates, masks and biases, on every path."""
    made = torch.Generator().manual_seed(2)
    n, queries = parts.num_embeddings, torch.randn(4, parts.embedding_dim, generator=made)
    prepared = ops.PreparedLookup(parts)
    best = ops.topk(prepared, ops.TopKJob(queries, 100))[1]
    seen = ops.IdLists(best.reshape(-1).contiguous(), torch.tensor([[i * 100, i * 100 + 50] for i in range(4)]))
    few = ops.IdLists(torch.randint(n, (400,), generator=made), torch.tensor([[0, 100], [0, 0], [90, 400], [5, 6]]))
    mask = torch.rand(n, generator=made) < 0.7
    masks = torch.rand(4, n, generator=made) < 0.99
    bias = ops.bias_levels(prepared, torch.randn(n, generator=made))
    check_all_paths(parts, ops.TopKJob(queries, 30, excluded=seen))
    check_all_paths(parts, ops.TopKJob(queries, 30, hidden=mask))
    check_all_paths(parts, ops.TopKJob(queries, 30, hidden=masks, excluded=seen))
    check_all_paths(parts, ops.TopKJob(queries, 30, candidates=few))
    check_all_paths(parts, ops.TopKJob(queries, 30, candidates=few, excluded=seen, cosine=True))
    check_all_paths(parts, ops.TopKJob(queries, 30, bias=bias))
    check_all_paths(parts, ops.TopKJob(queries, 30, bias=bias, candidates=few))
