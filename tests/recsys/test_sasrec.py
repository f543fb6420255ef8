"""SASRec against values worked out by hand and against histories that are not packed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mgqe.recsys.models import sasrec
from mgqe.recsys.models.sasrec import Dropout, PackedHistories, SASRec


def by_hand() -> SASRec:
    """One block, one head, d = 2, four items; no positions, the feed-forward layers worked out below."""
    item = nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]]))
    model = SASRec(item, 2, max_length=3, num_blocks=1, dropout=0.0).eval()
    block = model.blocks[0]
    with torch.no_grad():
        model.position.zero_()
        for layer in (block.query, block.first, block.second):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
        block.key_value.weight.copy_(torch.cat([torch.eye(2), torch.eye(2)]))
        block.key_value.bias.zero_()
        block.second.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    return model


def test_a_block_by_hand() -> None:
    # LayerNorm of two values (a, b) is (1, -1) where a > b and (-1, 1) where a < b (up to its epsilon).
    # Inputs, times sqrt(2): x1 = (r, 0), x2 = (0, r), r = sqrt(2). Second place: y = LN(x2) = (-1, 1);
    # <y, x1> / r = -1, <y, x2> / r = 1, so weights w = 1 / (1 + e^2) and 1 - w; z = y + (w r, (1 - w) r).
    # w r = .1686, (1 - w) r = 1.2456: z = (-.8314, 2.2456), u = LN(z) = (-1, 1), relu(u) = (0, 1),
    # W_2 relu(u) = (1, 0), x' = (0, 1), h = LN(x') = (-1, 1).
    model = by_hand()
    hidden = model.encode(model.item(torch.tensor([0, 1])), torch.tensor([2]))
    # First place: y = (1, -1) attends to itself: z = (1 + r, -1), u = (1, -1), relu (1, 0), W_2 gives (0, 0).
    torch.testing.assert_close(hidden, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), atol=1e-4, rtol=0)


def test_attention_by_hand() -> None:
    model = by_hand()
    found: list[Tensor] = []
    model.blocks[0].norm.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    model(torch.tensor([0, 1]), torch.tensor([2]))
    root, weight = math.sqrt(2), 1 / (1 + math.exp(2))
    expected = torch.tensor([[1 + root, -1.0], [-1 + weight * root, 1 + (1 - weight) * root]])
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)


def test_positions_count_from_the_end() -> None:
    model = by_hand()
    with torch.no_grad():
        model.position.copy_(torch.tensor([[9.0, 0.0], [5.0, 0.0], [0.0, 3.0]]))
    found: list[Tensor] = []
    model.blocks[0].attention_norm.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    model(torch.tensor([0, 1, 2]), torch.tensor([2, 1]))
    root = math.sqrt(2)
    expected = torch.tensor([[root + 5.0, 0.0], [0.0, root + 3.0], [2 * root, 3.0]])
    torch.testing.assert_close(found[0], expected)


def small(num_heads: int = 2) -> SASRec:
    torch.manual_seed(0)
    return SASRec(nn.Embedding(50, 8), 8, max_length=40, num_heads=num_heads).eval()


def plain(model: SASRec, items: Tensor) -> Tensor:
    """h of one history, computed position by position as in the paper."""
    length, dim = len(items), 8
    x = model.item(items) * math.sqrt(dim) + model.position[-length:]
    for block in model.blocks:
        y = block.attention_norm(x)
        query, (key, value) = block.query(y), block.key_value(x).chunk(2, dim=1)
        rows = []
        for t in range(length):
            heads = []
            for q, k, v in zip(*(part.chunk(block.num_heads, dim=1) for part in (query, key, value)), strict=True):
                weights = (k[: t + 1] @ q[t] / math.sqrt(q.shape[1])).softmax(dim=0)
                heads.append(weights @ v[: t + 1])
            rows.append(torch.cat(heads))
        u = block.norm(y + torch.stack(rows))
        x = u + block.second(block.first(u).relu())
    return model.norm(x)


@pytest.mark.parametrize(("num_heads", "worth", "groups"), [(1, 512, 1), (2, 30, 2), (2, 0, 7)])
def test_packing_changes_nothing(monkeypatch: pytest.MonkeyPatch, num_heads: int, worth: int, groups: int) -> None:
    model = small(num_heads)
    monkeypatch.setattr(sasrec, "WORTH_A_GROUP", worth)
    lengths = torch.tensor([3, 40, 1, 17, 5, 4, 33, 1])
    assert len(PackedHistories.of(lengths).groups) == groups
    items = torch.randint(50, (int(lengths.sum()),))
    expected = [plain(model, part) for part in items.split(lengths.tolist())]
    torch.testing.assert_close(model.encode(model.item(items), lengths), torch.cat(expected), atol=1e-5, rtol=1e-4)
    last = torch.stack([part[-1] for part in expected])
    torch.testing.assert_close(model(items, lengths), last, atol=1e-5, rtol=1e-4)


def test_a_later_item_never_changes_an_earlier_place() -> None:
    model = small()
    lengths, items = torch.tensor([9]), torch.arange(9)
    before = model.encode(model.item(items), lengths)
    items[6] = 40
    after = model.encode(model.item(items), lengths)
    assert torch.equal(before[:6], after[:6])
    assert not torch.isclose(before[6:], after[6:]).all(dim=1).any()


def test_gradients_stay_within_a_history() -> None:
    model = small()
    vectors = torch.randn(12, 8, requires_grad=True)
    # Not the plain sum, which the last normalisation makes the same whatever the vectors.
    (model.encode(vectors, torch.tensor([5, 7]))[3] * torch.arange(8.0)).sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum(dim=1).nonzero().squeeze(1).tolist() == [0, 1, 2, 3]


def test_dropout() -> None:
    torch.manual_seed(0)
    dropout, x = Dropout(0.25), torch.ones(1001, 64)
    y = dropout(x)
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert dropout.eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="num_heads must divide the embedding dimension 8, got 3"):
        SASRec(nn.Embedding(5, 8), 8, num_heads=3)
