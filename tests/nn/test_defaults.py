"""torch's default dtype and device are the user's: no answer, and no buffer of a kernel, may follow them."""

import pytest
import torch

import mgqe
from mgqe import baselines


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def default_device():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def answers(table, baseline):
    ids, queries = torch.arange(50, device="cpu"), torch.ones(2, 8, dtype=torch.float32, device="cpu")
    bias = torch.ones(50, dtype=torch.float32, device="cpu")
    seen = [torch.tensor([3], device="cpu")] * 2
    return [
        table.lookup(ids),
        table.to_dense(),
        table.bag(ids.view(5, 10)),
        table.bag(ids.view(5, 10), mode="max"),
        *table.topk(queries, 5, exclude=seen, bias=bias),
        *table.topk(queries, 5, candidates=ids[:20], score="cosine"),
        table.codes(ids),
        table.assign(queries),
        baseline.lookup(ids),
        baseline.bag(ids.view(5, 10)),
    ]


def tables():
    torch.manual_seed(0)
    emb = mgqe.MGQEmbedding(50, 8, counts=torch.arange(1, 51), warmup_steps=0)
    emb(torch.arange(50))
    return emb.freeze(), baselines.HashEmbedding(50, 8, num_buckets=20).freeze()


def same(found, expected):
    return all(a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(found, expected))


TABLES = tables()
EXPECTED = answers(*TABLES)


def test_answers_do_not_follow_the_default_dtype(default_dtype):
    assert same(answers(*TABLES), EXPECTED)


def test_answers_do_not_follow_the_default_device(default_device):
    assert same(answers(*TABLES), EXPECTED)


def test_training_does_not_follow_the_default_dtype(default_dtype):
    torch.manual_seed(0)
    emb = mgqe.MGQEmbedding(50, 8, counts=torch.arange(1, 51), warmup_steps=0, dtype=torch.float32)
    emb(torch.arange(50))
    loss = emb(torch.arange(50)).square().sum() + mgqe.quantization_loss(emb)
    loss.backward()
    assert emb.raw_weight.grad.dtype == torch.float32
    assert torch.equal(emb.eval()(torch.arange(50)), emb.freeze().lookup(torch.arange(50)))
