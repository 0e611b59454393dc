"""Check of bodies against ETags."""

from __future__ import annotations

import hashlib

import pytest

from afinar.errors import (
    StorageError,
)
from afinar.storage.etags import EtagVerifier


def test_etags_without_md5_cost_three_double_readings() -> None:
    check, readings = EtagVerifier(), 0

    def fetch() -> tuple[bytes, str]:
        nonlocal readings
        readings += 1
        return b"body", "0" * 32

    assert [check.read("s3://b/k", fetch) for _ in range(10)] == [b"body"] * 10
    assert readings == 3 * 2 + 7


def test_altered_body_is_never_returned() -> None:
    etag = hashlib.md5(b"body", usedforsecurity=False).hexdigest()
    bodies = iter([b"bodx", b"bodz", b"body"])
    assert EtagVerifier().read("s3://b/k", lambda: (next(bodies), f'"{etag}"')) == b"body"
    altered = iter(range(100))
    with pytest.raises(StorageError, match="s3://b/k"):
        EtagVerifier().read("s3://b/k", lambda: (bytes([next(altered)]), etag))
    assert (
        EtagVerifier().read("s3://b/k", lambda: (b"of several parts", f"{etag}-3"))
        == b"of several parts"
    )
