"""List a source: every picture in it with its etag and size, sorted by URI."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.errors import RequestError, StorageError
from afinar.sources.entry import LISTING
from afinar.storage.arrow import concat_columns, fill_columns
from afinar.storage.open import open_reader
from afinar.storage.store import ObjectInfo, Reader

_LISTED: Final = pa.schema([LISTING.field(name) for name in ("uri", "etag", "size")])
# Pictures that are Python objects at a time: ten million would take gigabytes.
_CHUNK: Final = 65_536


def list_pictures(source: str, extensions: tuple[str, ...] | None) -> pa.Table:
    """List the pictures of a source as LISTING, sorted by URI; labels, splits and groups are null.

    `extensions` are lower-case file name endings, None for all. Raises RequestError if the source
    is missing or has no picture."""
    reader = open_reader(source)
    infos = _walk(reader)
    if extensions is not None:
        infos = (info for info in infos if info.name.lower().endswith(extensions))

    listing = table_of(infos)
    if not len(listing):
        wanted = "files" if extensions is None else ", ".join(extensions)
        raise RequestError(
            f"{reader.root} holds no pictures ({wanted}): check the path, or --extensions"
        )
    return as_listing(listing.sort_by("uri"))


def table_of(infos: Iterable[ObjectInfo]) -> pa.Table:
    """Return listed objects as a table with the columns uri, etag, size."""
    return pa.Table.from_batches(_batches(infos), _LISTED)


def as_listing(table: pa.Table) -> pa.Table:
    """Return LISTING from the columns uri, etag and size; labels, splits and groups are null."""
    return fill_columns(table.select(_LISTED.names), LISTING)


def _walk(reader: Reader) -> Iterator[ObjectInfo]:
    try:
        if not reader.exists():
            raise RequestError(f"{reader.root} does not exist: check the path of the pictures")
        yield from reader.walk()
    except StorageError as error:
        raise RequestError(
            f"cannot list {reader.root}: {error}. Check the endpoint and the credentials."
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
    """Return the names of listed objects relative to their source."""
    return pc.utf8_slice_codeunits(listing.column("uri"), len(source.rstrip("/")) + 1)


def classes_of(table: pa.Table) -> list[str]:
    """Return the labels that occur in a table with a `label` column, sorted."""
    return sorted(table.column("label").drop_null().unique().to_pylist())


def fingerprint(listing: pa.Table) -> str:
    """Return a digest of all that a dataset depends on in a listing.

    It does not depend on the chunks of the table.
    """
    digest = hashlib.sha256()
    columns = ("uri", "etag", "label", "split", "group")
    for start in range(0, len(listing), _CHUNK):
        update_digest(digest, listing.slice(start, _CHUNK), columns)
    return digest.hexdigest()


def update_digest(digest: Any, rows: pa.Table, columns: tuple[str, ...]) -> None:
    r"""Add rows to a hash as lines of text, without a Python object per row.

    Rows (a.jpg, e1) and (b.jpg, e2) add the bytes `a.jpg\te1\t\nb.jpg\te2\t\n`. Arrow stores a text
    column as one buffer of bytes and one of offsets, so all lines are hashed with one call.
    """
    if not len(rows):
        return
    texts = (rows.column(name) for name in columns)
    lines = concat_columns(*texts, "\n", separator="\t").combine_chunks()
    lines = lines if isinstance(lines, pa.Array) else pa.concat_arrays(lines.chunks)

    # Line n is data[offsets[n] : offsets[n + 1]]; a slice begins in the middle of the buffers.
    _, offsets_buffer, data = lines.buffers()
    count = lines.offset + len(lines) + 1
    offsets = pa.Array.from_buffers(pa.int64(), count, [None, offsets_buffer])
    first, last = offsets[lines.offset].as_py(), offsets[count - 1].as_py()
    digest.update(memoryview(data)[first:last])
