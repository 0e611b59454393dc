"""URIs as people write them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from afinar.sources.uris import resolve


@pytest.mark.parametrize(
    ("written", "uri", "fallback"),
    [
        ("a.jpg", "/base/a.jpg", "{here}/a.jpg"),
        ("./a.jpg", "/base/a.jpg", "{here}/a.jpg"),
        ("x//a.jpg", "/base/x/a.jpg", "{here}/x/a.jpg"),
        ("../p/a.jpg", "/p/a.jpg", "{above}/p/a.jpg"),
        ("/p/./x/../a.jpg", "/p/a.jpg", None),
        ("//p//a.jpg", "/p/a.jpg", None),
        ("file:///p/a%20b%25.jpg", "/p/a b%.jpg", None),
        ("file:///p/100% wool.jpg", "/p/100% wool.jpg", None),
        ("FILE://localhost/p/a.jpg", "/p/a.jpg", None),
        ("file:/p/caf%E9.jpg", "/p/caf\\xe9.jpg", None),
        ("a%20b.jpg", "/base/a%20b.jpg", "{here}/a%20b.jpg"),
        ("s3://b/x//a.jpg", "s3://b/x//a.jpg", "s3://b/x/a.jpg"),
        ("s3://b/a.jpg", "s3://b/a.jpg", None),
        ("https://example.org//a.jpg", "https://example.org//a.jpg", None),
        (None, None, None),
    ],
)
def test_candidates_on_a_disk(
    written: str, uri: str, fallback: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = resolve(pa.chunked_array([[written]], pa.string()), "/base")
    expected = fallback and fallback.format(here=tmp_path, above=tmp_path.parent)
    assert [column.to_pylist() for column in found] == [[uri], [expected]]


@pytest.mark.parametrize(
    ("written", "uri", "fallback"),
    [
        ("a.jpg", "s3://b/base/a.jpg", None),
        ("./a.jpg", "s3://b/base/./a.jpg", "s3://b/base/a.jpg"),
        ("../x//a.jpg", "s3://b/base/../x//a.jpg", "s3://b/x/a.jpg"),
        ("../../../a.jpg", "s3://b/base/../../../a.jpg", "s3://b/a.jpg"),
        ("/p/a.jpg", "/p/a.jpg", None),
    ],
)
def test_candidates_in_a_bucket(written: str, uri: str, fallback: str | None) -> None:
    found = resolve(pa.chunked_array([[written]], pa.string()), "s3://b/base/")
    assert [column.to_pylist() for column in found] == [[uri], [fallback]]
