"""Canonical form of locations."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.errors import (
    RequestError,
)
from afinar.storage.open import normalize_uri


def test_locations_are_normalized_or_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalize_uri("pictures/") == str(tmp_path / "pictures")
    assert normalize_uri("file:///data") == "/data"
    assert normalize_uri("file://localhost/data/a%20b/") == "/data/a b"
    assert normalize_uri("/data/a%20b") == "/data/a%20b"
    assert normalize_uri("s3://bucket/a/") == "s3://bucket/a"
    assert normalize_uri("S3://bucket/A") == "s3://bucket/A"
    for wrong in ("gs://bucket/a", "s3:/bucket/a", "S3:/bucket/a", "s3://", "  ", "caf\udce9"):
        with pytest.raises(RequestError):
            normalize_uri(wrong)
