"""A list of pictures, wherever they lie, as a listing: each of them looked up.

Everything stays in Arrow columns but for the few thousand objects that are being looked up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from threading import Lock
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.errors import ForbiddenError, NotFoundError, RequestError, StorageError
from afinar.sources.annotations import absolute, read_table
from afinar.sources.listing import as_listing, table_of
from afinar.storage.multi_store import MultiStore
from afinar.storage.open import open_reader
from afinar.storage.store import ObjectInfo

MISSING: Final = "missing"
"""Change mark of a picture that a list names and that is not there."""

_UNREADABLE: Final = (
    "unreadable"  # the mark of one that could not be looked up: its reading will say why
)
_THREADS: Final = 32
_CHUNK: Final = 8192  # pictures looked up at a time
_PIECE: Final = 64  # of which one thread takes so many
_LISTERS: Final = 4  # folders of buckets at a time; each has threads of its own
_IN_A_ROW: Final = 20  # failures after which it is the store
# A page of a listing is one request for a thousand objects, at 19 µs of processor time each: a folder of a bucket that
# holds at most so many times the pictures that the list names is listed rather than asked for each.
_LIST_FROM: Final = 100
_LIST_TIMES: Final = 20


def list_named(location: str) -> tuple[pa.Table, list[str]]:
    """Look up every picture that the table at `location` (CSV or Parquet, column `uri`) names.

    Returns LISTING, sorted by URI, each picture once, and what a person should know of it. A relative URI is relative
    to the table's folder. A picture that does not exist has the change mark MISSING. Raises RequestError for a table
    that cannot be read or names none, and where a store does not answer.
    """
    rows = read_table("SOURCE", location, "uri").column("uri")
    named = rows.drop_null()
    uris = _normalised(named, location).unique()
    notes = []
    if len(rows) > len(named):
        notes.append(f"{len(rows) - len(named)} of {len(rows)} rows of {location} have no uri")
    if len(named) > len(uris):
        notes.append(
            f"{len(named) - len(uris)} of {len(rows)} rows of {location} name a picture that an earlier row names"
        )
    if not len(uris):
        raise RequestError(
            f"{location} names no picture: give a table with one in each row, in the column `uri`"
        )
    found = _look_up(uris.sort())
    if missing := pc.sum(pc.equal(found.column("etag"), MISSING)).as_py():
        notes.append(f"{missing} of {len(found)} pictures of {location} do not exist")
    return as_listing(found.sort_by("uri")), notes


def _normalised(uris: pa.ChunkedArray, location: str) -> pa.ChunkedArray:
    """URIs as listings write them."""
    bare = pc.replace_substring_regex(uris, "^file://", "")
    is_object = pc.match_substring_regex(bare, "^s3://[^/]+/.")
    odd = uris.filter(
        pc.and_(pc.match_substring_regex(bare, "^[A-Za-z][A-Za-z0-9+.-]*://"), pc.invert(is_object))
    )
    if len(odd):
        raise RequestError(
            f"{location} names {odd[0].as_py()!r}: only files and s3://BUCKET/KEY are supported"
        )
    whole = absolute(bare, location.rpartition("/")[0])
    crooked = pc.and_(
        pc.starts_with(whole, "/"), pc.match_substring_regex(whole, r"//|/\.\.?(/|$)|/$")
    )
    if not pc.any(crooked).as_py():
        return whole
    table = pa.table({"uri": whole, "crooked": crooked})
    return pa.chunked_array(
        map(_straightened, table.to_batches(max_chunksize=_CHUNK)), pa.large_string()
    )


def _straightened(batch: pa.RecordBatch) -> pa.Array:
    """Paths without `..` and the like, as a listing would name them."""
    uris, crooked = (column.to_pylist() for column in batch.columns)
    paths = [
        f"/{os.path.normpath(uri).lstrip('/')}" if bent else uri
        for uri, bent in zip(uris, crooked, strict=True)
    ]
    return pa.array(paths, pa.large_string())


def _look_up(uris: pa.Array) -> pa.Table:
    """uri, etag and size of each."""
    is_remote = pc.starts_with(uris, "s3://")
    remote = uris.filter(is_remote)
    _require_answers(remote)
    with ThreadPoolExecutor(_LISTERS) as pool:
        listed = pa.concat_tables([table_of(()), *pool.map(_list_folder, _dense_folders(remote))])
    listed = listed.filter(pc.is_in(listed.column("uri"), remote))
    rest = uris.filter(pc.invert(pc.is_in(uris, listed.column("uri"))))
    return pa.concat_tables([listed, table_of(_one_by_one(rest))])


def _require_answers(remote: pa.Array) -> None:
    """Ask every bucket once: a wrong endpoint is found out in seconds. One that is not there has no pictures."""
    for bucket in (
        pc.replace_substring_regex(remote, "^s3://([^/]+)/.*", r"\1").unique().to_pylist()
    ):
        try:
            open_reader(f"s3://{bucket}").exists()
        except ForbiddenError:
            continue  # who may not list a bucket may still read it
        except StorageError as error:
            raise RequestError(
                f"cannot look pictures up: {error}. Check the endpoint and the credentials."
            ) from error


def _dense_folders(remote: pa.Array) -> list[tuple[str, int]]:
    """Folders of which a list names many pictures, and how many objects may be listed there."""
    counts = pc.value_counts(pc.replace_substring_regex(remote, "/[^/]*$", ""))
    dense = counts.filter(
        pc.greater_equal(pc.struct_field(counts, "counts"), _LIST_FROM)
    ).to_pylist()
    return [(one["values"], one["counts"] * _LIST_TIMES) for one in dense]


def _list_folder(folder: tuple[str, int]) -> pa.Table:
    """What lies in a folder, or the first so many objects of it; nothing where it may not be listed."""
    uri, most = folder
    try:
        return table_of(islice(open_reader(uri).walk(), most))
    except StorageError:
        return table_of(())


def _one_by_one(uris: pa.Array) -> Iterator[ObjectInfo]:
    streak = _Streak()
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(uris), _CHUNK):
            chunk = uris.slice(start, _CHUNK).to_pylist()
            look = partial(_infos, MultiStore(remote=True), streak)
            for infos in pool.map(
                look, [chunk[first : first + _PIECE] for first in range(0, len(chunk), _PIECE)]
            ):
                yield from infos


class _Streak:
    """Failures in a row, over all threads."""

    def __init__(self) -> None:
        self._count, self._lock = 0, Lock()

    def broken(self) -> None:
        """An answer came."""
        self._count = 0

    def add(self, error: StorageError) -> None:
        """None came. Raises RequestError when that happens again and again."""
        with self._lock:
            self._count += 1
        if self._count >= _IN_A_ROW:
            raise RequestError(
                f"cannot look pictures up: {error}. Check the endpoint and the credentials."
            ) from error


def _infos(places: MultiStore, streak: _Streak, uris: list[str]) -> list[ObjectInfo]:
    return [_info(places, uri, streak) for uri in uris]


def _info(places: MultiStore, uri: str, streak: _Streak) -> ObjectInfo:
    try:
        info = places.stat(uri)
    except (NotFoundError, ForbiddenError) as error:
        info = ObjectInfo(uri, uri, 0, MISSING if isinstance(error, NotFoundError) else _UNREADABLE)
    except StorageError as error:
        streak.add(error)
        return ObjectInfo(uri, uri, 0, _UNREADABLE)
    streak.broken()
    return info
