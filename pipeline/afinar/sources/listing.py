"""List a source: every picture in it with its etag and size, sorted by URI."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.formats import DEFAULT_EXTENSIONS
from afinar.errors import RequestError, StorageError
from afinar.sources.entry import LISTING
from afinar.storage.arrow import concat_columns, fill_columns
from afinar.storage.contents import RECORD, is_record, kinds_in
from afinar.storage.left_out import LeftOut, describe_left_out
from afinar.storage.open import open_reader, open_store, split_uri
from afinar.storage.store import ObjectInfo, Reader

_LISTED: Final = pa.schema([LISTING.field(name) for name in ("uri", "etag", "size")])
# Pictures that are Python objects at a time: ten million would take gigabytes.
_CHUNK: Final = 65_536

_ENDING: Final = r"\.[0-9A-Za-z_~+-]{1,12}$"
_MAX_ENDINGS: Final = 20  # that are counted one by one
_MAX_RECORDS: Final = 1000  # that are read to find folders that afinar has written
_ARCHIVES: Final = (
    ".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".gz", ".bz2", ".xz",
    ".zst", ".7z", ".rar",
)  # fmt: skip


@dataclass
class AnnotatedListing:
    """A listing (LISTING), in time with labels, given splits and groups.

    `notes` are sentences for people. `left_out` counts the files and folders of the source that the
    listing does not have, by ending or by name.
    """

    listing: pa.Table
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def has(self, column: str) -> bool:
        """Return True if the column has a value for some picture."""
        values = self.listing.column(column)
        return bool(values.null_count < len(values))

    def set_column(self, name: str, values: pa.ChunkedArray) -> None:
        """Replace a column of the listing."""
        schema = self.listing.schema
        position = schema.get_field_index(name)
        self.listing = self.listing.set_column(position, schema.field(name), values)


def list_pictures(
    source: str, extensions: tuple[str, ...] | None, target: str = ""
) -> AnnotatedListing:
    """List the pictures of a folder or prefix, sorted by URI, without labels, splits and groups.

    `extensions` are lower-case file name endings, None for all. `target` is what the job writes: it
    is left out if it lies in the source, as is every other folder that afinar has written. Raises
    RequestError if the source is missing or has no picture.
    """
    reader = open_reader(source)
    left_out = LeftOut()
    files = _split_by_ending(_walk(reader, left_out), extensions)
    counts = Counter(left_out.counts)
    files = _without_afinar_folders(files, reader, target, counts)
    _count_endings(files.others, counts)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = AnnotatedListing(files.pictures, left_out=dict(ordered))

    if not len(listed.listing):
        raise _no_pictures(reader, extensions, listed.left_out)
    listed.listing = as_listing(listed.listing.sort_by("uri"))
    return listed


class _Files(NamedTuple):
    """Files of a source: pictures (uri, etag, size), and URIs of those with other endings."""

    pictures: pa.Table
    others: pa.ChunkedArray


def _split_by_ending(infos: Iterable[ObjectInfo], extensions: tuple[str, ...] | None) -> _Files:
    pictures, others = [], []
    pattern = None if extensions is None else f"({'|'.join(map(re.escape, extensions))})$"
    for batch in _batches(infos):
        if pattern is None:
            pictures.append(batch)
            continue
        has_ending = pc.match_substring_regex(batch.column("uri"), pattern, ignore_case=True)
        if has_ending.true_count == len(batch):
            pictures.append(batch)
            continue
        pictures.append(batch.filter(has_ending))
        others.append(batch.column("uri").filter(pc.invert(has_ending)))
    return _Files(
        pa.Table.from_batches(pictures, _LISTED), pa.chunked_array(others, pa.large_string())
    )


def _count_endings(uris: pa.ChunkedArray, counts: Counter[str]) -> None:
    """Count files by their ending. A source may have millions of endings such as `.000001`."""
    has_ending = pc.match_substring_regex(uris, _ENDING)
    if without := len(uris) - (pc.sum(has_ending).as_py() or 0):
        counts["without ending"] += without
    endings = pc.replace_substring_regex(uris.filter(has_ending), f"(?s)^.*({_ENDING})", r"\1")
    values = pa.Table.from_struct_array(pc.value_counts(pc.utf8_lower(endings)))
    values = values.sort_by([("counts", "descending"), ("values", "ascending")])
    for row in values.slice(0, _MAX_ENDINGS).to_pylist():
        counts[row["values"]] += row["counts"]
    if rest := pc.sum(values.column("counts").slice(_MAX_ENDINGS)).as_py():
        counts["with other endings"] += rest


def _without_afinar_folders(
    files: _Files, reader: Reader, target: str, counts: Counter[str]
) -> _Files:
    """Return the files outside of datasets, models and predictions; count those folders."""
    folders = _afinar_folders(files, reader)
    if target.startswith(f"{reader.root.rstrip('/')}/"):
        folders.add(target)

    for folder in sorted(folders):
        in_pictures = pc.starts_with(files.pictures.column("uri"), f"{folder}/")
        in_others = pc.starts_with(files.others, f"{folder}/")
        if pc.any(in_pictures).as_py() or pc.any(in_others).as_py():
            counts["afinar folder"] += 1
            files = _Files(
                files.pictures.filter(pc.invert(in_pictures)),
                files.others.filter(pc.invert(in_others)),
            )
    return files


def _afinar_folders(files: _Files, reader: Reader) -> set[str]:
    """Return the URIs of folders whose records say that afinar has written them."""
    folders = set()
    for uris in (files.pictures.column("uri"), files.others):
        records = uris.filter(pc.match_substring_regex(uris, f"/{RECORD}$")).to_pylist()
        for uri in sorted(records)[-_MAX_RECORDS:]:
            name = uri[len(reader.root.rstrip("/")) + 1 :]
            folder = uri.rsplit("/", 2)[0]
            if folder not in folders and len(folder) > len(reader.root) and is_record(reader, name):
                folders.add(folder)
    return folders


def _no_pictures(
    reader: Reader, extensions: tuple[str, ...] | None, left_out: dict[str, int]
) -> RequestError:
    root = reader.root
    if (kind := _kind_of_file(root)) is not None:
        return RequestError(f"{root} {kind}")
    if written := kinds_in(open_store(root)):
        return RequestError(f"{root} holds {written[0]}, no pictures: are two arguments swapped?")
    held = f"; it holds {describe_left_out(left_out)}" if left_out else ""
    if extensions is None:
        return RequestError(f"{root} holds no pictures{held}: check the path")
    listed = ", ".join(extensions[:3]) + (", …" if len(extensions) > 3 else "")
    return RequestError(
        f"{root} holds no pictures ({listed}){held}: check the path, or --extensions"
    )


def _absent(reader: Reader) -> str:
    if not reader.is_remote and os.path.lexists(reader.root):
        return "is neither a folder nor a regular file: name a folder of pictures"
    return "does not exist: check the path of the pictures"


def _kind_of_file(uri: str) -> str | None:
    """Return what a SOURCE is and what to do if it is a file, not a folder; None otherwise."""
    root, name = split_uri(uri)
    try:
        open_reader(root).stat(name)
    except StorageError:
        return None
    if name.lower().endswith(_ARCHIVES):
        return "is an archive: unpack it, and name the folder"
    if name.lower().endswith(tuple(DEFAULT_EXTENSIONS.split(","))):
        return (
            "is one picture: name its folder, or a list of pictures (.txt, .csv, .tsv, .parquet). "
            "`afinar label PICTURE --model …` prints the classes of one picture"
        )
    return (
        "is a file: name a folder, an s3:// prefix, or a list of pictures "
        "(.txt, .csv, .tsv, .parquet)"
    )


def table_of(infos: Iterable[ObjectInfo]) -> pa.Table:
    """Return listed objects as a table with the columns uri, etag, size."""
    return pa.Table.from_batches(_batches(infos), _LISTED)


def as_listing(table: pa.Table) -> pa.Table:
    """Return LISTING from the columns uri, etag and size; labels, splits and groups are null."""
    return fill_columns(table.select(_LISTED.names), LISTING)


def _walk(reader: Reader, left_out: LeftOut) -> Iterator[ObjectInfo]:
    try:
        if not reader.exists():
            raise RequestError(f"{reader.root} {_kind_of_file(reader.root) or _absent(reader)}")
        yield from reader.walk(left_out=left_out)
    except StorageError as error:
        raise RequestError(f"cannot list {reader.root}: {error}{reader.hint}") from error


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
