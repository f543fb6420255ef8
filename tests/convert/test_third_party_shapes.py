"""Models built as third-party packages build theirs, so that what those need is kept where they are not installed.

The packages themselves: test_recbole.py, test_deepctr.py, test_torchrec.py.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mgqe

N, DIM = 1200, 16
CONFIG = mgqe.CompressConfig(num_centroids=32, centroid_dtype="int8")


class BagCollection(nn.Module):
    """torchrec's EmbeddingBagCollection: one bag per table, all arguments by keyword, one more offset than bags."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        bags = {name: nn.EmbeddingBag(N, DIM, mode=mode, include_last_offset=True) for name in ("user", "item")}
        self.embedding_bags = nn.ModuleDict(bags)

    def forward(self, values, offsets, weights=None):
        pooled = [
            bag(input=values, offsets=offsets, per_sample_weights=weights).float()
            for bag in self.embedding_bags.values()
        ]
        return torch.cat(pooled, dim=1)


@pytest.mark.parametrize(("mode", "weighted"), [("sum", False), ("sum", True), ("mean", False)])
def test_bags_called_by_keyword(mode, weighted):
    torch.manual_seed(0)
    model = BagCollection(mode)
    values, offsets = torch.randint(N, (30,)), torch.tensor([0, 4, 4, 17, 30], dtype=torch.int32)
    weights = torch.rand(30) if weighted else None
    before = model(values, offsets, weights)
    assert mgqe.compress_(model, CONFIG).compressed == ("embedding_bags.user", "embedding_bags.item")
    assert torch.equal(model(values, offsets, weights), before)  # the warm-up
    mgqe.start_quantizing(model)
    (model(values, offsets, weights).sum() + mgqe.quantization_loss(model)).backward()
    model.eval()
    through_codes = model(values, offsets, weights)
    mgqe.freeze_(model)
    torch.testing.assert_close(model(values, offsets, weights), through_codes)
    assert not model(values, offsets, weights)[1].any()  # an empty bag


class Pairwise(nn.Module):
    """RecBole's models: the loss is a method of the model, and ranking reads the whole weight."""

    def __init__(self) -> None:
        super().__init__()
        self.user_embedding, self.item_embedding = nn.Embedding(N, DIM), nn.Embedding(N, DIM, padding_idx=0)

    def calculate_loss(self, batch):
        user, good, bad = batch
        query = self.user_embedding(user)
        gap = (query * (self.item_embedding(good) - self.item_embedding(bad))).sum(-1)
        return -F.logsigmoid(gap).mean()

    def full_sort_predict(self, user):
        return self.user_embedding(user) @ self.item_embedding.weight.transpose(0, 1)


def test_a_loss_that_is_a_method_and_scores_of_the_whole_weight():
    torch.manual_seed(0)
    model = Pairwise()
    mgqe.compress_(model, CONFIG, init="from_weight")
    task_loss = model.calculate_loss
    model.calculate_loss = lambda batch: task_loss(batch) + mgqe.quantization_loss(model)
    batch = torch.randint(N, (3, 64))
    model.calculate_loss(batch).backward()
    assert all(layer.quantizer.codebooks[0].grad.any() for layer in (model.user_embedding, model.item_embedding))
    best_state = copy.deepcopy(model.state_dict())  # the best epoch, kept in memory
    model.load_state_dict(best_state)
    model.eval()
    scores = model.full_sort_predict(batch[0])
    torch.testing.assert_close(scores[:, 7], model.user_embedding(batch[0]) @ model.item_embedding(torch.tensor(7)))
    mgqe.freeze_(model)
    assert torch.equal(model.full_sort_predict(batch[0]), scores)


class ClickModel(nn.Module):
    """DeepCTR-Torch's models: parameters in a Python list for regularisation, ids out of a float matrix, aux_loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_dict = nn.ModuleDict({"item": nn.Embedding(N, DIM), "day": nn.Embedding(7, DIM)})
        self.linear = nn.ModuleDict({"item": nn.Embedding(N, 1), "day": nn.Embedding(7, 1)})
        self.regularization_weight = [(list(self.embedding_dict.parameters()), 1e-3)]
        self.aux_loss = torch.zeros(1)

    def forward(self, x):
        total = torch.zeros(len(x), 1)
        for column, name in enumerate(self.embedding_dict):
            ids = x[:, column : column + 1].long()
            total = total + self.embedding_dict[name](ids).sum(-1) + self.linear[name](ids).squeeze(-1)
        return torch.sigmoid(total)

    def total_loss(self, x, y):
        wrong = F.binary_cross_entropy(self(x).squeeze(-1), y, reduction="sum")
        return wrong + sum(l2 * w.square().sum() for ws, l2 in self.regularization_weight for w in ws) + self.aux_loss


def test_a_hook_that_sets_the_auxiliary_loss():
    torch.manual_seed(0)
    model = ClickModel()
    report = mgqe.compress_(model, CONFIG, init="from_weight")
    assert "embedding_dict.item" in report.compressed
    assert not {"embedding_dict.day", "linear.day"} & set(report.compressed)
    layer = model.embedding_dict["item"]
    assert model.regularization_weight[0][0][0] is layer.raw_weight  # the regularised rows are the rows that train

    def set_loss(module, args, output):
        module.aux_loss = len(output) * mgqe.quantization_loss(module)

    handle = model.register_forward_hook(set_loss)
    x = torch.stack([torch.randint(N, (64,)), torch.randint(7, (64,))], dim=1).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        loss = model.total_loss(x, (x[:, 0] % 2 == 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert model.aux_loss.item() > 0
    assert losses[-1] < losses[0]
    model.eval()
    expected = model(x)
    handle.remove()
    mgqe.freeze_(model)
    assert torch.equal(model(x), expected)
