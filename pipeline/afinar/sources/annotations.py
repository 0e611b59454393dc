"""Labels, given splits and groups of a listing, from folder names and tables.

Labels come from folder names or from a table. Splits come from folders (`train/`, `validation/`,
`test/`) or from a column of the label table. Groups come from a table.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.errors import RequestError
from afinar.sources.entry import SPLITS
from afinar.sources.listing import AnnotatedListing, names_of
from afinar.sources.tables import read_table
from afinar.sources.uris import resolve
from afinar.storage.arrow import group_by

# Compared without regard to case.
_SPLIT_NAMES: Final = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_MAX_ALIKE: Final = 5  # groups of classes that look alike, in one note


def annotate(
    annotated: AnnotatedListing, source: str, *, labels: str, split_by_folder: bool, group: str
) -> None:
    """Fill in `label`, `split` and `group` of a listing of the folder or prefix `source`.

    `labels` is "folder", "none", or the location of a table; `group` is the location of a table, or
    "". Raises RequestError for a table that cannot be read or contradicts itself, and for folders
    that are not splits.
    """
    if split_by_folder or labels == "folder":
        folders = _folders(annotated.listing, source, 1 + split_by_folder)
        if split_by_folder:
            annotated.set_column("split", _given_splits(folders[0], source))
        if labels == "folder":
            annotated.set_column("label", folders[-1])
            _check_label_folders(annotated, source, split_by_folder)
    annotate_from_tables(annotated, source, labels, group, with_splits=not split_by_folder)


def annotate_from_tables(
    annotated: AnnotatedListing, base: str, labels: str, group: str, *, with_splits: bool
) -> None:
    """Fill in labels, splits and groups from the tables that are given.

    Relative uris in a table are relative to `base`. Raises RequestError for a table that cannot be
    read, contradicts itself, or has rows of which none names a picture.
    """
    if labels not in {"folder", "none"}:
        flag = f"--labels {labels}"
        table = read_table("--labels", labels, "label")
        uris = _match(annotated, base, table.column("uri"), flag)
        join(annotated, uris, table, "label", flag)
        if "split" in table.column_names and with_splits:
            join(annotated, uris, with_split_names(table, flag), "split", flag)
    if group:
        flag = f"--group {group}"
        table = read_table("--group", group, "group")
        uris = _match(annotated, base, table.column("uri"), flag)
        join(annotated, uris, table, "group", flag)


def _folders(listing: pa.Table, source: str, depth: int) -> list[pa.ChunkedArray]:
    """Return the first `depth` folders of each picture's name; null where there are fewer.

    Example with depth 2: `train/cats/1.jpg` gives `train` and `cats`, `train/1.jpg` gives `train`
    and null. Folders without a name, which a bucket may have (`p//cats/1.jpg`), are passed over.
    """
    names = names_of(listing, source)
    if pc.any(pc.or_(pc.starts_with(names, "/"), pc.match_substring(names, "//"))).as_py():
        names = pc.replace_substring_regex(names, "^/+", "")
        names = pc.replace_substring_regex(names, "/+", "/")
    parts = pc.split_pattern(names, "/", max_splits=depth)
    lengths = pc.list_value_length(parts)
    none = pa.scalar(None, pa.string())

    folders = []
    for level in range(depth):
        padded = pc.list_slice(parts, level, level + 1, return_fixed_size_list=True)
        part = pc.cast(pc.list_element(padded, 0), pa.string())
        # The last part of a name is the file, not a folder.
        folders.append(pc.if_else(pc.greater(lengths, level + 1), part, none))
    return folders


def _check_label_folders(annotated: AnnotatedListing, source: str, split_by_folder: bool) -> None:
    """Refuse splits that would become classes, and note pictures that lie in no class folder."""
    labels = annotated.listing.column("label")
    names = sorted(labels.unique().drop_null().to_pylist())
    if not split_by_folder:
        _refuse_splits_as_classes(annotated, source, names)

    is_null = pc.is_null(labels)
    if names and (unlabelled := pc.sum(is_null).as_py()):
        where = "one of train/, validation/ and test/" if split_by_folder else source
        example = annotated.listing.column("uri").filter(is_null)[0].as_py()
        annotated.notes.append(
            f"{unlabelled} pictures lie directly in {where}, in no class folder, and have no "
            f"label, for example {example}"
        )


def _refuse_splits_as_classes(annotated: AnnotatedListing, source: str, names: list[str]) -> None:
    """Raise RequestError if the folders of a source are splits and nothing else.

    A class may be called `train` or `test`. So two folders or more are needed that are all called
    like splits. If there are others beside `train` and one of validation and test, that is noted.
    """
    splits = [name for name in names if name.lower() in _SPLIT_NAMES]
    if len(splits) < 2:
        return
    if len(splits) == len(names):
        raise RequestError(
            f"{source} holds {', '.join(f'{name}/' for name in names)}: these are splits, not "
            "classes. Give --split folder to use them, so that the folders below them are the "
            "classes; if they are classes, give --labels FILE."
        )
    given = {_SPLIT_NAMES[name.lower()] for name in splits}
    if "train" in given and len(given) > 1:
        annotated.notes.append(
            f"the classes {', '.join(splits)} are called like splits: if they are splits, move the "
            "other folders away and give --split folder"
        )


def _given_splits(folders: pa.ChunkedArray, source: str) -> pa.ChunkedArray:
    names = folders.unique()
    unknown = sorted(name for name in names.drop_null().to_pylist() if _split_of(name) is None)
    if unknown or folders.null_count:
        content = repr(unknown[0]) if unknown else "a picture in no folder"
        raise RequestError(
            f"--split folder: {source} holds {content}, which is not a split. "
            "Name the first folders train, validation (or val) and test, or give shares such as "
            "--split 0.7,0.15,0.15."
        )
    splits = [_split_of(name) for name in names.to_pylist()]
    if "train" not in splits:
        raise RequestError(f"--split folder: {source} has no folder train/")
    return pa.array(splits, pa.string()).take(pc.index_in(folders, names))


def _split_of(name: str) -> str | None:
    return _SPLIT_NAMES.get(name.strip().lower())


def with_split_names(table: pa.Table, flag: str) -> pa.Table:
    """Return the table with the names of its column `split` replaced: `val` is validation.

    Raises RequestError for a name that is no split's.
    """
    column = table.column("split")
    names = column.drop_null().unique().to_pylist()
    unknown = sorted(name for name in names if _split_of(name) is None)
    if unknown:
        raise RequestError(f"{flag}: the split {unknown[0]!r} is none of {', '.join(SPLITS)}")
    splits = pa.array([_split_of(name) for name in names], pa.large_string())
    values = splits.take(pc.index_in(column, pa.array(names, pa.large_string())))
    return table.set_column(table.column_names.index("split"), "split", values)


def _match(
    annotated: AnnotatedListing, base: str, named: pa.ChunkedArray, flag: str
) -> pa.ChunkedArray:
    """Return for each uri of a table that of the listed picture; unchanged where there is none.

    Raises RequestError if the table has uris and none of them names a listed picture.
    """
    listed = annotated.listing.column("uri")
    candidates = resolve(named, base)
    in_fallback = pc.and_not(
        pc.is_in(candidates.fallback, listed), pc.is_in(candidates.uri, listed)
    )
    uris = pc.if_else(in_fallback, candidates.fallback, candidates.uri)

    is_unlisted = pc.and_not(pc.is_valid(uris), pc.is_in(uris, listed))
    unlisted = pc.sum(is_unlisted).as_py() or 0
    if not unlisted:
        return uris
    row = pc.index(is_unlisted, True).as_py()
    places = [column[row].as_py() for column in candidates]
    looked_at = " and at ".join(place for place in places if place is not None)
    example = f"for example {named[row].as_py()!r}, which was looked for at {looked_at}"
    rows = len(uris) - uris.null_count
    if unlisted == rows:
        raise RequestError(f"0 of {rows} rows of {flag} name a picture of {base}, {example}")
    annotated.notes.append(f"{unlisted} rows of {flag} name no picture of {base}, {example}")
    return uris


def join(
    annotated: AnnotatedListing, uris: pa.ChunkedArray, table: pa.Table, column: str, flag: str
) -> None:
    """Set a column of the listing from that column of a table, whose rows are of the given uris.

    A row without a uri or without a value is ignored.
    """
    is_complete = pc.and_(pc.is_valid(uris), pc.is_valid(table.column(column)))
    uris, given = uris.filter(is_complete), table.column(column).filter(is_complete)
    require_one_value(uris, given, flag, column)

    listed = annotated.listing.column("uri")
    position = pc.index_in(listed, uris)
    annotated.set_column(column, pc.cast(given.take(position), pa.string()))
    if position.null_count:
        annotated.notes.append(
            f"{position.null_count} of {len(listed)} pictures are not in {flag} "
            f"and have no {column}"
        )


def require_one_value(
    uris: pa.ChunkedArray, values: pa.ChunkedArray, flag: str, column: str
) -> None:
    """Raise RequestError if a table gives a uri two different values."""
    pairs = pa.table({"uri": uris, "value": values})
    counts = group_by(pairs, ["uri"]).aggregate([("value", "count_distinct")])

    ambiguous = counts.filter(pc.greater(counts.column("value_count_distinct"), 1))
    if len(ambiguous):
        uri = ambiguous.column("uri")[0].as_py()
        raise RequestError(
            f"{flag} gives {uri} more than one {column}, and {len(ambiguous)} pictures in all: "
            "give each one"
        )


def alike_notes(classes: Iterable[str]) -> list[str]:
    """Return a note that names classes which people cannot tell apart; none if there are none.

    They differ in case, in blanks, in invisible characters, or in the form of Unicode: `é` is one
    character or two.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[_appearance(name)].append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    if not alike:
        return []
    # ascii() shows what differs: 'caf\xe9' and 'cafe\u0301'.
    texts = [" and ".join(map(_distinct, names)) for names in alike[:_MAX_ALIKE]]
    more = f", and {len(alike) - _MAX_ALIKE} more groups" if len(alike) > _MAX_ALIKE else ""
    return [f"classes that look alike are different classes: {'; '.join(texts)}{more}"]


def _appearance(name: str) -> str:
    visible = "".join(
        character
        for character in unicodedata.normalize("NFKC", name)
        if unicodedata.category(character) not in {"Cf", "Cc"}
    )
    return " ".join(visible.casefold().split())


def _distinct(name: str) -> str:
    return repr(name) if name.isascii() else f"{name} ({name!a})"
