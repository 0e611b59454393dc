"""A list of pictures in any places as a listing: each picture is looked up.

Everything stays in Arrow columns, except for the few thousand objects that are being looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from afinar.errors import ForbiddenError, NotFoundError, RequestError, StorageError
from afinar.sources.annotations import join, with_split_names
from afinar.sources.listing import AnnotatedListing, as_listing, table_of
from afinar.sources.tables import LIST_ENDINGS, read_table
from afinar.sources.uris import Candidates, resolve
from afinar.storage.multi_store import MultiStore
from afinar.storage.open import open_reader
from afinar.storage.store import S3_HINT, ObjectInfo

MISSING: Final = "missing"
"""Etag of a picture that a list names and that does not exist."""

_UNREADABLE: Final = (
    "unreadable"  # etag of one that could not be looked up: reading gives the reason
)
_THREADS: Final = 32
_CHUNK: Final = 8192  # pictures looked up at a time
_BATCH: Final = 64  # pictures that one thread looks up in one go
_LISTERS: Final = 4  # folders of buckets at a time; each has threads of its own
_FAILURES_IN_A_ROW: Final = 20  # after so many failures the store is at fault, not the pictures
# One page of a listing is one request for a thousand objects, at 19 µs of CPU time each. So a
# folder of a bucket is listed if the list names many of its pictures, and at most so many objects.
_LIST_FROM: Final = 100
_LIST_TIMES: Final = 20


class _Folder(NamedTuple):
    """A folder of a bucket, and the largest number of objects to list there."""

    uri: str
    max_objects: int


def is_list(uri: str) -> bool:
    """Return True if a source is a table that names its pictures, not a folder."""
    return uri.lower().endswith(LIST_ENDINGS) and (
        uri.startswith("s3://") or not Path(uri).is_dir()
    )


def list_base(uri: str) -> str:
    """Return what relative URIs in the list at `uri` are relative to: its folder."""
    return uri.rpartition("/")[0] or "/"


def list_named(location: str, columns: tuple[str, ...] = ()) -> AnnotatedListing:
    """Look up every picture that the table at `location` names.

    The table is CSV or Parquet with the column `uri`, or text with a URI in each line. Returns
    LISTING, sorted by URI, each picture once; `columns` (of `label`, `split` and `group`) are read
    too if the table has them. A relative URI is relative to the table's folder, or if nothing is
    there, to the current folder. A picture that does not exist has the etag MISSING. Raises
    RequestError for a table that cannot be read, names no picture, or none that exists, and if a
    store does not answer.
    """
    table = read_table("SOURCE", location, "uri", columns)
    named = table.filter(pc.is_valid(table.column("uri")))
    if not len(named):
        raise RequestError(
            f"{location} names no picture: give a table with one in each row, in the column `uri`"
        )

    base = list_base(location)
    candidates = resolve(named.column("uri"), base)
    _require_supported(candidates.uri, named.column("uri"), location)
    uris, listing = look_up_candidates(candidates)
    missing = pc.sum(pc.equal(listing.column("etag"), MISSING)).as_py() or 0
    if missing == len(listing):
        places = " and at ".join(
            place for place in (column[0].as_py() for column in candidates) if place is not None
        )
        raise RequestError(
            f"none of the {missing} pictures that {location} names exists, for example "
            f"{named.column('uri')[0].as_py()!r}, which was looked for at {places}"
        )

    annotated = AnnotatedListing(as_listing(listing.sort_by("uri")))
    annotated.notes += _notes(location, len(table), uris, annotated.listing, missing)
    if "split" in named.column_names:
        named = with_split_names(named, location)
    for name in columns:
        if name in named.column_names:
            join(annotated, uris, named, name, location)
    return annotated


def _notes(
    location: str, rows: int, uris: pa.ChunkedArray, listing: pa.Table, missing: int
) -> list[str]:
    notes = []
    if rows > len(uris):
        notes.append(f"{rows - len(uris)} of {rows} rows of {location} have no uri")
    if repeated := len(uris) - len(listing):
        notes.append(
            f"{repeated} of {rows} rows of {location} name a picture that an earlier row names"
        )
    if missing:
        notes.append(f"{missing} of {len(listing)} pictures of {location} do not exist")
    return notes


def _require_supported(uris: pa.ChunkedArray, written: pa.ChunkedArray, location: str) -> None:
    has_scheme = pc.match_substring_regex(uris, "^[A-Za-z][A-Za-z0-9+.-]*://")
    is_object = pc.match_substring_regex(uris, "^s3://[^/]+/.")
    unsupported = written.filter(pc.and_not(has_scheme, is_object))
    if len(unsupported):
        raise RequestError(
            f"{location} names {unsupported[0].as_py()!r}: only files and s3://BUCKET/KEY are "
            "supported"
        )


class LookedUp(NamedTuple):
    """The URI of each row, and the listing of all of them (uri, etag, size), each once."""

    uris: pa.ChunkedArray
    listing: pa.Table


def look_up_candidates(candidates: Candidates) -> LookedUp:
    """Look up every picture; those that are missing at their fallbacks too."""
    uris = candidates.uri
    listing = _look_up(_unique(uris))
    missing = listing.column("uri").filter(pc.equal(listing.column("etag"), MISSING))
    if not len(missing):
        return LookedUp(uris, listing)

    is_missing = pc.is_in(uris, missing)
    elsewhere = _unique(candidates.fallback.filter(is_missing).drop_null())
    if not len(elsewhere):
        return LookedUp(uris, listing)
    found = _look_up(elsewhere)
    found = found.filter(pc.not_equal(found.column("etag"), MISSING))
    is_moved = pc.and_(is_missing, pc.is_in(candidates.fallback, found.column("uri")))
    uris = pc.if_else(is_moved, candidates.fallback, uris)

    # Two rows may name one picture, one of them by its fallback.
    found = found.filter(pc.invert(pc.is_in(found.column("uri"), listing.column("uri"))))
    listing = pa.concat_tables([listing, found])
    return LookedUp(uris, listing.filter(pc.is_in(listing.column("uri"), _unique(uris))))


def _unique(uris: pa.ChunkedArray) -> pa.Array:
    return uris.unique().sort()


def _look_up(uris: pa.Array) -> pa.Table:
    """Return uri, etag and size of each picture."""
    remote = uris.filter(pc.starts_with(uris, "s3://"))
    _require_answers(remote)

    # Folders with many of the pictures are listed, the other pictures looked up one by one.
    with ThreadPoolExecutor(_LISTERS) as pool:
        tables = list(pool.map(_list_folder, _dense_folders(remote)))
    listed = pa.concat_tables([table_of(()), *tables])
    listed = listed.filter(pc.is_in(listed.column("uri"), remote))
    others = uris.filter(pc.invert(pc.is_in(uris, listed.column("uri"))))
    return pa.concat_tables([listed, table_of(_look_up_each(others))])


def _require_answers(remote: pa.Array) -> None:
    """Ask every bucket once, so that a wrong endpoint is found within seconds.

    A bucket that does not exist has no pictures.
    """
    buckets = pc.replace_substring_regex(remote, "^s3://([^/]+)/.*", r"\1").unique()
    for bucket in buckets.to_pylist():
        try:
            open_reader(f"s3://{bucket}").exists()
        except ForbiddenError:
            continue  # who may not list a bucket may still read it
        except StorageError as error:
            raise _no_answer(error) from error


def _dense_folders(remote: pa.Array) -> list[_Folder]:
    """Return the folders of which a list names many pictures."""
    counts = pc.value_counts(pc.replace_substring_regex(remote, "/[^/]*$", ""))
    dense = counts.filter(pc.greater_equal(pc.struct_field(counts, "counts"), _LIST_FROM))
    return [_Folder(row["values"], row["counts"] * _LIST_TIMES) for row in dense.to_pylist()]


def _list_folder(folder: _Folder) -> pa.Table:
    """List the first objects of a folder; nothing if it may not be listed."""
    try:
        return table_of(islice(open_reader(folder.uri).walk(), folder.max_objects))
    except StorageError:
        return table_of(())


def _look_up_each(uris: pa.Array) -> Iterator[ObjectInfo]:
    failures = _FailureCounter()
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(uris), _CHUNK):
            chunk = uris.slice(start, _CHUNK).to_pylist()
            batches = [chunk[first : first + _BATCH] for first in range(0, len(chunk), _BATCH)]
            look_up_batch = partial(_look_up_batch, MultiStore(remote=True), failures)
            for infos in pool.map(look_up_batch, batches):
                yield from infos


class _FailureCounter:
    """Failures in a row, over all threads."""

    def __init__(self) -> None:
        self._count, self._lock = 0, Lock()

    def reset(self) -> None:
        """Note that a store has answered."""
        self._count = 0

    def add(self, error: StorageError) -> None:
        """Count a failure. Raises RequestError after too many in a row."""
        with self._lock:
            self._count += 1
        if self._count >= _FAILURES_IN_A_ROW:
            raise _no_answer(error) from error


def _no_answer(error: StorageError) -> RequestError:
    return RequestError(f"cannot look pictures up: {error}{S3_HINT}")


def _look_up_batch(
    stores: MultiStore, failures: _FailureCounter, uris: list[str]
) -> list[ObjectInfo]:
    return [_look_up_one(stores, uri, failures) for uri in uris]


def _look_up_one(stores: MultiStore, uri: str, failures: _FailureCounter) -> ObjectInfo:
    try:
        info = stores.stat(uri)
    except (NotFoundError, ForbiddenError) as error:
        etag = MISSING if isinstance(error, NotFoundError) else _UNREADABLE
        info = ObjectInfo(uri, uri, 0, etag)
    except StorageError as error:
        failures.add(error)
        return ObjectInfo(uri, uri, 0, _UNREADABLE)
    failures.reset()
    return info
