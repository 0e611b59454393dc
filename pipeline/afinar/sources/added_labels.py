"""Labels that people add to a dataset after it was ingested, for pictures in any place.

A row may name a picture of the source, whose label it replaces, or one elsewhere, such as in an
archive that a model has labelled: that picture becomes part of the listing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.errors import RequestError
from afinar.sources.annotations import require_one_value
from afinar.sources.listing import AnnotatedListing, as_listing
from afinar.sources.tables import read_table
from afinar.sources.uri_list import MISSING, look_up_candidates
from afinar.sources.uris import Candidates, resolve

ADDED: Final = pa.schema([("uri", pa.large_string()), ("label", pa.string())])
"""One added label. It stays with the dataset, so that later ingests apply it too."""

_FLAG: Final = "--add-labels"


@dataclass(frozen=True)
class AddedRows:
    """Rows with a label of the table that a user gives, and notes on the others.

    `named` are the URIs as they are written, `uris` the places that they may mean.
    """

    named: pa.ChunkedArray
    uris: Candidates
    labels: pa.ChunkedArray
    notes: list[str] = field(default_factory=list)


def read_added(location: str, base: str) -> AddedRows:
    """Read a table with uri and label, such as corrections.csv; relative URIs belong to `base`.

    Rows without a label are skipped and counted: nobody has looked at them. Raises RequestError for
    a table that cannot be read, and for one without any label.
    """
    table = read_table(_FLAG, location, "label", ())
    labels = pc.utf8_trim_whitespace(table.column("label"))
    is_given = pc.and_(pc.is_valid(table.column("uri")), pc.not_equal(labels, ""))
    is_given = pc.fill_null(is_given, False)
    named, labels = table.column("uri").filter(is_given), labels.filter(is_given)
    if not len(named):
        raise RequestError(
            f"{_FLAG} {location}: none of its {len(table)} rows has a label: fill in the column "
            "`label` of the pictures that you have looked at"
        )
    notes = []
    if skipped := len(table) - len(named):
        notes.append(f"{skipped} of {len(table)} rows of {_FLAG} {location} have no label")
    return AddedRows(named, resolve(named, base), labels, notes)


def apply_added(
    annotated: AnnotatedListing, standing: pa.Table, rows: AddedRows | None, known: pa.Table
) -> pa.Table:
    """Apply added labels to a listing and return all of them (ADDED).

    `standing` (ADDED) were added before and `rows` are new; the new ones count. `known` has the
    etags of pictures of the dataset: one that is no longer in its place stays as it was read.
    Raises RequestError if a picture has two labels, or no row names a picture.
    """
    added = standing if rows is None else _merge(standing, _find(annotated, rows))
    if not len(added):
        return added
    listed = annotated.listing.column("uri")
    elsewhere = added.column("uri").filter(pc.invert(pc.is_in(added.column("uri"), listed)))
    if len(elsewhere):
        extra = as_listing(_look_up(elsewhere, known))
        listing = pa.concat_tables([annotated.listing, extra.cast(annotated.listing.schema)])
        annotated.listing = listing.sort_by("uri")

    position = pc.index_in(annotated.listing.column("uri"), added.column("uri"))
    labels = pc.coalesce(added.column("label").take(position), annotated.listing.column("label"))
    annotated.set_column("label", labels)
    is_listed = pc.is_in(added.column("uri"), annotated.listing.column("uri"))
    return added.filter(is_listed)


def _find(annotated: AnnotatedListing, rows: AddedRows) -> pa.Table:
    """Return the rows (ADDED) whose pictures exist, in the listing or elsewhere."""
    annotated.notes += rows.notes
    listed = annotated.listing.column("uri")
    uris = pc.if_else(pc.is_in(rows.uris.uri, listed), rows.uris.uri, rows.uris.fallback)
    is_listed = pc.fill_null(pc.is_in(uris, listed), False)
    is_elsewhere = pc.invert(is_listed)
    uris = pc.if_else(is_listed, uris, rows.uris.uri)
    is_nowhere = is_elsewhere
    if pc.any(is_elsewhere).as_py():
        looked_up = look_up_candidates(rows.uris)
        is_missing = pc.equal(looked_up.listing.column("etag"), MISSING)
        missing = looked_up.listing.column("uri").filter(is_missing)
        uris = pc.if_else(is_listed, uris, looked_up.uris)
        is_nowhere = pc.and_(is_elsewhere, pc.is_in(uris, missing))

    count = pc.sum(is_nowhere).as_py() or 0
    if count:
        example = rows.named.filter(is_nowhere)[0].as_py()
        message = f"{count} of {len(uris)} labels of {_FLAG} are of pictures that are nowhere"
        if count == len(uris):
            raise RequestError(f"{message}, for example {example!r}: check the column `uri`")
        annotated.notes.append(f"{message} and are left out, for example {example!r}")
    is_found = pc.invert(is_nowhere)
    uris, labels = uris.filter(is_found), rows.labels.filter(is_found)
    require_one_value(uris, labels, _FLAG, "label")

    outside = len(uris.filter(pc.invert(pc.is_in(uris, listed))).unique())
    added = "1 label" if len(uris) == 1 else f"{len(uris)} labels"
    annotated.notes.append(f"{added} added, {outside} of them of pictures outside the source")
    return pa.Table.from_arrays(
        [uris.cast(pa.large_string()), labels.cast(pa.string())], schema=ADDED
    )


def _merge(standing: pa.Table, new: pa.Table) -> pa.Table:
    """Return both tables with one row for each picture; that of `new` counts."""
    kept = standing.filter(pc.invert(pc.is_in(standing.column("uri"), new.column("uri"))))
    table = pa.concat_tables([kept, new]).combine_chunks()
    first = pc.index_in(table.column("uri").unique(), table.column("uri"))
    return table.take(first).sort_by("uri")


def _look_up(uris: pa.ChunkedArray, known: pa.Table) -> pa.Table:
    """Return uri, etag and size of pictures; those that are gone have the etag that is known."""
    none = pa.chunked_array([pa.nulls(len(uris), pa.large_string())])
    listing = look_up_candidates(Candidates(uris, none)).listing
    is_missing = pc.equal(listing.column("etag"), MISSING)
    etags = known.column("etag").take(pc.index_in(listing.column("uri"), known.column("uri")))
    etags = pc.if_else(is_missing, etags, listing.column("etag"))
    listing = listing.set_column(1, listing.schema.field("etag"), etags.cast(pa.large_string()))
    return listing.filter(pc.is_valid(etags))
