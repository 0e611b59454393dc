"""Stores to test on: a folder and a real S3 server, and the proxy that injects faults."""

from __future__ import annotations

import pytest

from afinar.storage.open import open_store
from afinar.storage.store import Store
from tests.faults import fault_proxy, fault_server

__all__ = ["fault_proxy", "fault_server"]


@pytest.fixture
def store(location: str) -> Store:
    """Return an empty store: once in a folder, once in a bucket."""
    return open_store(location)
