"""Labels, given splits and groups of a listing, from folder names and tables.

Labels come from folder names or from a table. Splits come from folders (`train/`, `validation/`,
`test/`) or from a column of the label table. Groups come from a table.
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
from afinar.storage.csv_cells import unescape_formulas
from afinar.storage.open import read_uri

_SPLIT_FOLDERS: Final = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


@dataclass
class AnnotatedListing:
    """A listing with labels, given splits and groups; `notes` report rows that did not match."""

    listing: pa.Table
    notes: list[str] = field(default_factory=list)

    def set_column(self, name: str, values: pa.ChunkedArray) -> None:
        """Replace a column of the listing."""
        schema = self.listing.schema
        position = schema.get_field_index(name)
        self.listing = self.listing.set_column(position, schema.field(name), values)


def annotate(
    listing: pa.Table, source: str, *, labels: str, split_by_folder: bool, group: str
) -> AnnotatedListing:
    """Fill in `label`, `split` and `group` of a listing.

    `labels` is "folder", "none", or the location of a table; `group` is the location of a table, or
    "". Raises RequestError for a table that cannot be read or contradicts itself, and for folders
    that are not splits.
    """
    annotated = AnnotatedListing(listing)
    if split_by_folder or labels == "folder":
        folders = _folders(listing, source, 1 + split_by_folder)
        if split_by_folder:
            annotated.set_column("split", _given_splits(folders[0], source))
        if labels == "folder":
            annotated.set_column("label", folders[-1])

    if labels not in {"folder", "none"}:
        flag = f"--labels {labels}"
        table = read_table("--labels", labels, "label")
        _join(annotated, source, table, "label", flag)
        if "split" in table.column_names and not split_by_folder:
            _check_splits(table.column("split"), labels)
            _join(annotated, source, table, "split", flag)
    if group:
        table = read_table("--group", group, "group")
        _join(annotated, source, table, "group", f"--group {group}")
    return annotated


def _folders(listing: pa.Table, source: str, depth: int) -> list[pa.ChunkedArray]:
    """Return the first `depth` folders of each picture's name; null where there are fewer.

    Example with depth 2: `train/cats/1.jpg` gives `train` and `cats`, `train/1.jpg` gives `train`
    and null.
    """
    parts = pc.split_pattern(names_of(listing, source), "/", max_splits=depth)
    lengths = pc.list_value_length(parts)
    none = pa.scalar(None, pa.string())

    folders = []
    for level in range(depth):
        padded = pc.list_slice(parts, level, level + 1, return_fixed_size_list=True)
        part = pc.cast(pc.list_element(padded, 0), pa.string())
        # The last part of a name is the file, not a folder.
        folders.append(pc.if_else(pc.greater(lengths, level + 1), part, none))
    return folders


def _given_splits(folders: pa.ChunkedArray, source: str) -> pa.ChunkedArray:
    names = folders.unique()
    unknown = sorted(name for name in names.drop_null().to_pylist() if name not in _SPLIT_FOLDERS)
    if unknown or folders.null_count:
        content = repr(unknown[0]) if unknown else "a picture in no folder"
        raise RequestError(
            f"--split folder: {source} holds {content}, which is not a split. "
            "Name the first folders train, validation (or val) and test, or give shares such as "
            "--split 0.7,0.15,0.15."
        )
    if "train" not in names.to_pylist():
        raise RequestError(f"--split folder: {source} has no folder train/")

    splits = pa.array([_SPLIT_FOLDERS[name] for name in names.to_pylist()], pa.string())
    return splits.take(pc.index_in(folders, names))


def read_table(flag: str, location: str, column: str) -> pa.Table:
    """Read the table at a location: `uri`, `column` and, if it has one, `split`, as strings.

    Raises RequestError, which begins with `flag`, if there is no such table.
    """
    try:
        data = read_uri(location)
    except NotFoundError as error:
        raise RequestError(f"{flag} {location}: there is no such table") from error
    except StorageError as error:
        raise RequestError(f"{flag}: cannot read {error}") from error

    try:
        is_parquet = location.lower().endswith(".parquet")
        table = pq.read_table(io.BytesIO(data)) if is_parquet else _read_csv(data, column)
    except pa.ArrowInvalid as error:
        raise RequestError(f"{flag} {location} is not a readable table: {error}") from error

    for required in ("uri", column):
        if required not in table.column_names:
            names = ", ".join(table.column_names)
            raise RequestError(f"{flag} {location} has no column {required!r}; it has {names}")
    kept = [name for name in dict.fromkeys(("uri", column, "split")) if name in table.column_names]
    return pa.table({name: pc.cast(table.column(name), pa.large_string()) for name in kept})


def _read_csv(data: bytes, column: str) -> pa.Table:
    """Read all values as text: a class may be called 007 or NA. Only an empty field is null."""
    options = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in ("uri", column, "split")},
        strings_can_be_null=True,
        null_values=[""],
    )
    table = pyarrow.csv.read_csv(io.BytesIO(data), convert_options=options)
    for position, name in enumerate(table.column_names):
        if name in options.column_types:
            cells = unescape_formulas(table.column(position))
            table = table.set_column(position, name, cells)
    return table


def _check_splits(splits: pa.ChunkedArray, location: str) -> None:
    unknown = set(splits.unique().to_pylist()) - {*SPLITS, None}
    if unknown:
        raise RequestError(
            f"--labels {location}: the split {min(map(str, unknown))!r} is none of "
            f"{', '.join(SPLITS)}"
        )


def _join(
    annotated: AnnotatedListing, source: str, table: pa.Table, column: str, flag: str
) -> None:
    """Set a column of the listing from a table with complete or relative uris.

    A row without a uri or without a value is ignored.
    """
    is_complete = pc.and_(pc.is_valid(table.column("uri")), pc.is_valid(table.column(column)))
    table = table.filter(is_complete)
    uris = absolute_uris(table.column("uri"), source)
    _require_one_value(uris, table.column(column), flag, column)

    listed = annotated.listing.column("uri")
    position = pc.index_in(listed, uris)
    values = table.column(column).take(position)
    annotated.set_column(column, pc.cast(values, pa.string()))

    if position.null_count:
        annotated.notes.append(
            f"{position.null_count} of {len(listed)} pictures are not in {flag} "
            f"and have no {column}"
        )
    unlisted = len(table.filter(pc.invert(pc.is_in(uris, listed)))) if len(table) else 0
    if unlisted:
        annotated.notes.append(f"{unlisted} rows of {flag} name no picture of {source}")


def absolute_uris(uris: pa.ChunkedArray, source: str) -> pa.ChunkedArray:
    """Return complete URIs; a relative one is relative to `source`."""
    is_absolute = pc.or_(pc.starts_with(uris, "/"), pc.starts_with(uris, "s3://"))
    absolute = concat_columns(source.rstrip("/"), uris, separator="/")
    return pc.if_else(is_absolute, uris, absolute)


def _require_one_value(
    uris: pa.ChunkedArray, values: pa.ChunkedArray, flag: str, column: str
) -> None:
    pairs = pa.table({"uri": uris, "value": values})
    counts = pairs.group_by("uri").aggregate([("value", "count_distinct")])

    ambiguous = counts.filter(pc.greater(counts.column("value_count_distinct"), 1))
    if len(ambiguous):
        uri = ambiguous.column("uri")[0].as_py()
        raise RequestError(
            f"{flag} gives {uri} more than one {column}, and {len(ambiguous)} pictures in all: "
            "give each one"
        )
