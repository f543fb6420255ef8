"""Memory in large pages."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

import mgqe
from mgqe import ops

MANY = 5 << 20  # bytes: more than two large pages
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def asks_for_large_pages(tensor: torch.Tensor) -> bool:
    """Whether the mapping that the middle of a tensor is in has the flag ``hg``."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= middle < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError("no mapping has the tensor")


@pytest.mark.parametrize("shape", [(MANY // 8, 8), (3, 2), (0, 8), ()])
def test_is_an_ordinary_tensor(shape: tuple[int, ...]) -> None:
    made = ops.empty_in_large_pages(shape, torch.uint8)
    assert (made.shape, made.dtype, made.device.type) == (shape, torch.uint8, "cpu")
    made.fill_(7)
    assert torch.equal(pickle.loads(pickle.dumps(made)), torch.full(shape, 7, dtype=torch.uint8))
    assert torch.equal(made.clone(), made)


def test_other_types() -> None:
    made = ops.empty_in_large_pages((MANY // 4,), torch.float32).copy_(torch.arange(MANY // 4))
    assert torch.equal(made, torch.arange(MANY // 4, dtype=torch.float32))


def test_joins_along_the_first_axis() -> None:
    parts = [torch.full((n, 8), n % 250, dtype=torch.uint8) for n in (MANY // 8, 0, 3)]
    assert torch.equal(ops.join_in_large_pages(parts), torch.cat(parts))


@pytest.mark.skipif(not SWITCH.exists(), reason="a Linux with large pages")
def test_frozen_codes_and_those_read_without_mapping_ask_for_them(tmp_path: Path) -> None:
    layer = mgqe.DPQEmbedding(MANY // 8, 8, num_subspaces=8, num_centroids=256)
    table = layer.freeze()
    assert asks_for_large_pages(table.snapshot.codes[0])
    assert not asks_for_large_pages(torch.zeros(MANY))
    mgqe.save(table, tmp_path / "table")
    for mmap in (False, True):
        assert asks_for_large_pages(mgqe.load(tmp_path / "table", mmap=mmap).snapshot.codes[0]) is not mmap
