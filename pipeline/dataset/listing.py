"""Listing a source: every picture in it, its change mark, and its label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline.config import Labels
from pipeline.dataset.schema import LISTING
from pipeline.errors import RequestError, StorageError
from pipeline.storage.store import ObjectInfo, Store, open_store


def list_pictures(source: str, extensions: tuple[str, ...] | None, labels: Labels) -> pa.Table:
    """List the pictures of a source, sorted by URI.

    `extensions` are lower-case endings, None for all. With `labels="folder"` the first folder below the
    source is the label, and a picture in no folder has none. Raises RequestError when the source is
    missing or holds no picture.
    """
    store = open_store(source)
    rows = [
        {
            "uri": info.uri,
            "name": info.name,
            "etag": info.etag,
            "size": info.size,
            "label": _label(info.name, labels),
        }
        for info in _listed(store)
        if extensions is None or info.name.lower().endswith(extensions)
    ]
    if not rows:
        wanted = "files" if extensions is None else ", ".join(extensions)
        raise RequestError(f"{store.root} holds no pictures ({wanted}): check the path, or --extensions")
    rows.sort(key=lambda row: str(row["uri"]))
    return pa.Table.from_pylist(rows, schema=LISTING)


def _listed(store: Store) -> Iterator[ObjectInfo]:
    try:
        if not store.exists():
            raise RequestError(f"{store.root} does not exist: check the path of the pictures")
        yield from store.walk()
    except StorageError as error:
        raise RequestError(f"cannot list {store.root}: {error}. Check the endpoint and the credentials.") from error


def _label(name: str, labels: Labels) -> str | None:
    parts = PurePosixPath(name).parts
    return parts[0] if labels == "folder" and len(parts) > 1 else None


def classes_of(table: pa.Table) -> list[str]:
    """Labels that occur in a table with a `label` column, sorted."""
    return sorted(label for label in table.column("label").unique().to_pylist() if label is not None)


def fingerprint(listing: pa.Table) -> str:
    """Digest of everything in a listing that a dataset depends on: uri, etag, label."""
    digest = hashlib.sha256()
    for batch in listing.select(["uri", "etag", "label"]).to_batches(max_chunksize=100_000):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(repr(row).encode())  # row by row: how a table is cut into chunks is nobody's business
    return digest.hexdigest()
