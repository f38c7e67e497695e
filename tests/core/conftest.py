"""A store for engines to meet in."""

from __future__ import annotations

import pytest
from helpers.cluster import put_network
from helpers.model import network

from overlaynet.store.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    """With a network config and nothing else."""
    made = MemoryStore()
    put_network(made, network())
    return made
