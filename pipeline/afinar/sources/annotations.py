"""What a source says of its pictures besides their bytes: labels, given splits, groups.

Labels come from folder names or from a table; splits from folders (`train/`, `validation/`, `test/`) or from a
column of the label table; groups from a table.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from afinar.errors import NotFoundError, RequestError, StorageError
from afinar.sources.entry import SPLITS
from afinar.sources.listing import names_of
from afinar.storage.arrow import concat_columns
from afinar.storage.open import normalize_uri, open_reader

_SPLIT_FOLDERS: Final = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
} | {"test": "test"}


@dataclass
class AnnotatedListing:
    """A listing with its labels, given splits and groups; `notes` tell what did not fit."""

    listing: pa.Table
    notes: list[str] = field(default_factory=list)


def annotate(
    listing: pa.Table, source: str, *, labels: str, split_by_folder: bool, group: str
) -> AnnotatedListing:
    """Fill in `label`, `split` and `group` of a listing.

    `labels` is "folder", "none", or the location of a table; `group` the location of a table, or "". Raises
    RequestError for a table that cannot be read or contradicts itself, and for folders that are no split.
    """
    done = AnnotatedListing(listing)
    folders = (
        _folders(listing, source, 1 + split_by_folder)
        if split_by_folder or labels == "folder"
        else []
    )
    if split_by_folder:
        _set(done, "split", _given_splits(folders[0], source))
    if labels == "folder":
        _set(done, "label", folders[-1])
    elif labels != "none":
        table = read_table("--labels", labels, "label")
        _look_up(done, source, table, "label", f"--labels {labels}")
        if "split" in table.column_names and not split_by_folder:
            _check_splits(table.column("split"), labels)
            _look_up(done, source, table, "split", f"--labels {labels}")
    if group:
        _look_up(done, source, read_table("--group", group, "group"), "group", f"--group {group}")
    return done


def _set(done: AnnotatedListing, name: str, values: pa.ChunkedArray) -> None:
    table = done.listing
    done.listing = table.set_column(
        table.schema.get_field_index(name), table.schema.field(name), values
    )


def _folders(listing: pa.Table, source: str, depth: int) -> list[pa.ChunkedArray]:
    """The first `depth` folders of each picture's name; null where it lies less deep."""
    parts = pc.split_pattern(names_of(listing, source), "/", max_splits=depth)
    lengths = pc.list_value_length(parts)
    found = []
    for level in range(depth):
        padded = pc.list_slice(parts, level, level + 1, return_fixed_size_list=True)
        folder = pc.cast(pc.list_element(padded, 0), pa.string())
        found.append(
            pc.if_else(pc.greater(lengths, level + 1), folder, pa.scalar(None, pa.string()))
        )
    return found


def _given_splits(folders: pa.ChunkedArray, source: str) -> pa.ChunkedArray:
    names = folders.unique()
    odd = sorted(str(name) for name in names.drop_null().to_pylist() if name not in _SPLIT_FOLDERS)
    if odd or folders.null_count:
        what = repr(odd[0]) if odd else "a picture in no folder"
        raise RequestError(
            f"--split folder: below {source} lies {what}, which is no split. Name the first folders train, "
            "validation (or val) and test, or give shares such as --split 0.7,0.15,0.15."
        )
    if "train" not in names.to_pylist():
        raise RequestError(f"--split folder: {source} has no folder train/")
    known = pa.array([_SPLIT_FOLDERS[name] for name in names.to_pylist()], pa.string())
    return known.take(pc.index_in(folders, names))


def read_table(flag: str, location: str, column: str) -> pa.Table:
    """The table at a location, its `uri` and `column` (and `split`, where it has one) as strings.

    Raises RequestError, with `flag` in front, where there is none or it is not such a table.
    """
    folder, _, name = normalize_uri(location).rpartition("/")
    try:
        data = open_reader(folder or "/").get(name)
    except NotFoundError as error:
        raise RequestError(f"{flag} {location}: there is no such table") from error
    except StorageError as error:
        raise RequestError(f"{flag}: cannot read {error}") from error
    try:
        table = (
            pq.read_table(io.BytesIO(data))
            if name.lower().endswith(".parquet")
            else _read_csv(data, column)
        )
    except pa.ArrowInvalid as error:
        raise RequestError(f"{flag} {location} is not a readable table: {error}") from error
    for wanted in ("uri", column):
        if wanted not in table.column_names:
            raise RequestError(
                f"{flag} {location} has no column {wanted!r}; it has {', '.join(table.column_names)}"
            )
    kept = [name for name in ("uri", column, "split") if name in table.column_names]
    return pa.table(
        {name: pc.cast(table.column(name), pa.large_string()) for name in dict.fromkeys(kept)}
    )


def _read_csv(data: bytes, column: str) -> pa.Table:
    """Read as text throughout: a class called 007 or NA is what it says. Only an empty field is missing."""
    texts = {name: pa.string() for name in ("uri", column, "split")}
    options = pyarrow.csv.ConvertOptions(
        column_types=texts, strings_can_be_null=True, null_values=[""]
    )
    return pyarrow.csv.read_csv(io.BytesIO(data), convert_options=options)


def _check_splits(splits: pa.ChunkedArray, location: str) -> None:
    odd = set(splits.unique().to_pylist()) - {*SPLITS, None}
    if odd:
        raise RequestError(
            f"--labels {location}: the split {min(map(str, odd))!r} is none of {', '.join(SPLITS)}"
        )


def _look_up(done: AnnotatedListing, source: str, table: pa.Table, column: str, what: str) -> None:
    """Set a column of the listing from a table that names pictures by whole or by relative uri.

    A row without a uri or without a value says nothing.
    """
    table = table.filter(
        pc.and_(pc.is_valid(table.column("uri")), pc.is_valid(table.column(column)))
    )
    whole = absolute(table.column("uri"), source)
    _require_one_answer(whole, table.column(column), what, column)
    listed = done.listing.column("uri")
    at = pc.index_in(listed, whole)
    _set(done, column, pc.cast(table.column(column).take(at), pa.string()))
    unlisted = (
        len(table) - pc.sum(pc.cast(pc.is_in(whole, listed), pa.int64())).as_py()
        if len(table)
        else 0
    )
    unnamed = at.null_count
    if unnamed:
        done.notes.append(
            f"{unnamed} of {len(listed)} pictures are not in {what} and have no {column}"
        )
    if unlisted:
        done.notes.append(f"{unlisted} rows of {what} name no picture of {source}")


def absolute(uris: pa.ChunkedArray, source: str) -> pa.ChunkedArray:
    """Whole URIs of a table's, which may be relative to `source`."""
    within = pc.or_(pc.starts_with(uris, "/"), pc.starts_with(uris, "s3://"))
    return pc.if_else(within, uris, concat_columns(source.rstrip("/"), uris, separator="/"))


def _require_one_answer(
    uris: pa.ChunkedArray, values: pa.ChunkedArray, what: str, column: str
) -> None:
    pairs = (
        pa.table({"uri": uris, "value": values})
        .group_by("uri")
        .aggregate([("value", "count_distinct")])
    )
    torn = pairs.filter(pc.greater(pairs.column("value_count_distinct"), 1))
    if len(torn):
        uri = torn.column("uri")[0].as_py()
        raise RequestError(
            f"{what} gives {uri} more than one {column}; {len(torn)} pictures are so: give each one"
        )
