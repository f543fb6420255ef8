"""What tests of mgqe.torchrec have in common."""

from __future__ import annotations

import pytest


@pytest.fixture
def one_rank(monkeypatch):
    """A process group of this process alone, as torchrec's DistributedModelParallel needs it."""
    from mgqe.torchrec import process_group

    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with process_group() as ranks:
        yield ranks
