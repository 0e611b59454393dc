"""Listings of a source."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

from afinar.errors import RequestError
from afinar.sources.entry import LISTING
from afinar.sources.listing import (
    classes_of,
    fingerprint,
    list_pictures,
    names_of,
    update_digest,
)


def test_listing_is_sorted_and_has_files_with_the_endings_only(
    archive: Path, tmp_path: Path
) -> None:
    (archive / "moss" / "notes.txt").write_text("not listed")
    (archive / "moss" / "UPPER.JPG").write_bytes(b"listed")
    listing = list_pictures(str(archive), (".jpg",)).listing
    assert listing.schema == LISTING
    uris = listing.column("uri").to_pylist()
    assert uris == sorted(uris)
    assert set(uris) == {
        str(path) for path in archive.rglob("*") if path.suffix in {".jpg", ".JPG"}
    }
    assert listing.column("size").to_pylist() == [Path(uri).stat().st_size for uri in uris]
    assert names_of(listing, f"{archive}/")[0].as_py() == "moss/000.jpg"
    assert len(list_pictures(str(archive), None).listing) == len(listing) + 1


@pytest.mark.parametrize(
    ("folder", "words"), [("nowhere", "does not exist"), ("pictures", "holds no pictures")]
)
def test_source_without_pictures_is_refused(archive: Path, folder: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        list_pictures(str(archive.parent / folder), (".tif",))


def test_fingerprint_does_not_depend_on_chunks(archive: Path) -> None:
    listing = list_pictures(str(archive), None).listing
    chunked = pa.concat_tables([listing.slice(0, 5), listing.slice(5)])
    assert fingerprint(chunked) == fingerprint(listing)
    assert fingerprint(listing.slice(1)) != fingerprint(listing)


def test_digest_is_that_of_the_rows_as_text() -> None:
    rows = pa.table({"uri": ["x.jpg", "a.jpg", "b.jpg"], "etag": ["e0", "e1", None]})
    digest = hashlib.sha256()
    update_digest(digest, rows.slice(0, 0), ("uri", "etag"))
    update_digest(digest, rows.slice(1, 1), ("uri", "etag"))
    assert digest.hexdigest() == hashlib.sha256(b"a.jpg\te1\t\n").hexdigest()


def test_classes_are_sorted_labels_without_null() -> None:
    assert classes_of(pa.table({"label": ["rust", None, "moss", "rust"]})) == ["moss", "rust"]
