"""Listing a source: every picture in it with its change mark, sorted by URI."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.errors import RequestError, StorageError
from afinar.sources.entry import LISTING
from afinar.storage.arrow import concat_columns
from afinar.storage.open import open_reader
from afinar.storage.store import ObjectInfo, Reader

_LISTED: Final = pa.schema([LISTING.field(name) for name in ("uri", "etag", "size")])
_CHUNK: Final = (
    65_536  # Python objects of this many pictures at a time: ten million would take gigabytes
)


def list_pictures(source: str, extensions: tuple[str, ...] | None) -> pa.Table:
    """List the pictures of a source as LISTING, sorted by URI; labels, splits and groups are null.

    `extensions` are lower-case endings, None for all. Raises RequestError when the source is missing or holds no
    picture.
    """
    store = open_reader(source)
    taken = (
        info
        for info in _listed(store)
        if extensions is None or info.name.lower().endswith(extensions)
    )
    listing = table_of(taken)
    if not len(listing):
        wanted = "files" if extensions is None else ", ".join(extensions)
        raise RequestError(
            f"{store.root} holds no pictures ({wanted}): check the path, or --extensions"
        )
    return as_listing(listing.sort_by("uri"))


def table_of(infos: Iterable[ObjectInfo]) -> pa.Table:
    """Listed objects as columns: uri, etag, size."""
    return pa.Table.from_batches(_batches(infos), _LISTED)


def as_listing(found: pa.Table) -> pa.Table:
    """LISTING of a table with the columns uri, etag and size; labels, splits and groups are null."""
    unknown = [
        pa.nulls(len(found), field.type) for field in LISTING if field.name not in _LISTED.names
    ]
    return pa.Table.from_arrays(
        [*(found.column(name) for name in _LISTED.names), *unknown], schema=LISTING
    )


def _listed(store: Reader) -> Iterator[ObjectInfo]:
    try:
        if not store.exists():
            raise RequestError(f"{store.root} does not exist: check the path of the pictures")
        yield from store.walk()
    except StorageError as error:
        raise RequestError(
            f"cannot list {store.root}: {error}. Check the endpoint and the credentials."
        ) from error


def _batches(infos: Iterable[ObjectInfo]) -> Iterator[pa.RecordBatch]:
    infos = iter(infos)
    while chunk := list(islice(infos, _CHUNK)):
        columns = [
            pa.array([info.uri for info in chunk], pa.large_string()),
            pa.array([info.etag for info in chunk], pa.large_string()),
            pa.array([info.size for info in chunk], pa.int64()),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=_LISTED)


def names_of(listing: pa.Table, source: str) -> pa.ChunkedArray:
    """Names of listed objects relative to their source."""
    return pc.utf8_slice_codeunits(listing.column("uri"), len(source.rstrip("/")) + 1)


def classes_of(table: pa.Table) -> list[str]:
    """Labels that occur in a table with a `label` column, sorted."""
    return sorted(
        label for label in table.column("label").unique().to_pylist() if label is not None
    )


def fingerprint(listing: pa.Table) -> str:
    """Digest of everything in a listing that a dataset depends on; how the table is cut into chunks is not part."""
    digest = hashlib.sha256()
    for start in range(0, len(listing), _CHUNK):
        update_digest(
            digest, listing.slice(start, _CHUNK), ("uri", "etag", "label", "split", "group")
        )
    return digest.hexdigest()


def update_digest(digest: Any, rows: pa.Table, columns: tuple[str, ...]) -> None:
    """Feed rows into a hash, a line each, without a Python object per row."""
    lines = concat_columns(
        *(rows.column(name) for name in columns), "\n", separator="\t"
    ).combine_chunks()
    lines = lines if isinstance(lines, pa.Array) else pa.concat_arrays(lines.chunks)
    _, offsets, data = lines.buffers()
    if len(lines):
        first, last = (
            pa.Array.from_buffers(pa.int64(), len(lines) + 1, [None, offsets])[at].as_py()
            for at in (0, -1)
        )
        digest.update(memoryview(data)[first:last])
