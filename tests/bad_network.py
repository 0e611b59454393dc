"""Fixtures for jobs on a faulty network: an archive behind a proxy, and short timeouts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from afinar.storage import s3_clients
from afinar.storage.open import open_store
from tests.conftest import make_archive
from tests.faults import FaultProxy

PICTURES = 60


@pytest.fixture
def source(tmp_path: Path, bucket: str, fault_proxy: FaultProxy, impatient: None) -> str:
    """Return a folder of sixty pictures in a bucket behind the proxy."""
    folder = make_archive(tmp_path / "pictures", PICTURES // 2)
    store = open_store(f"{bucket}/pictures")
    with ThreadPoolExecutor(16) as pool:
        puts = [
            pool.submit(store.put_if_absent, f"{path.parent.name}/{path.name}", path.read_bytes())
            for path in folder.rglob("*.jpg")
        ]
    assert all(put.result() for put in puts)
    return store.root


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shorten timeouts and retries, so that clients fail within seconds."""
    monkeypatch.setattr(s3_clients, "STALL_S", 0.5)
    monkeypatch.setattr(s3_clients, "WRITE_S", 5.0)
    monkeypatch.setattr(s3_clients, "READ_ATTEMPTS", 5)
    s3_clients._clients.cache_clear()
    yield
    s3_clients._clients.cache_clear()
