"""Content of a version: pure functions from outcomes to index, rejects and counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.ingest import IngestConfig, SplitShares, parse_shares
from afinar.dataset.manifest import DatasetObject, Manifest, put_objects
from afinar.dataset.schema import INDEX, REJECTS
from afinar.dataset.splits import (
    PublishedSplits,
    Repeats,
    assign_splits,
    exclude_duplicates,
    shares_of_folders,
)
from afinar.pictures.rejects import Reason
from afinar.sources.entry import SPLITS
from afinar.storage.arrow import to_parquet
from afinar.storage.objects import ObjectRef, put_object
from afinar.storage.store import Store

_INDEX_ROWS: Final = 1_000_000  # rows of one index file


@dataclass(frozen=True)
class Content:
    """Rows of one version: INDEX, REJECTS, and counts of repeated pictures.

    `shares` are those of the splits, None if they are not known.
    """

    index: pa.Table
    rejects: pa.Table
    repeats: Repeats
    shares: SplitShares | None

    @property
    def listed(self) -> int:
        """Number of pictures in the source: each is a sample or a reject."""
        return len(self.index) + len(self.rejects)

    @property
    def unusable(self) -> int:
        """Number of rejects that count against the budget: all but those erased on request."""
        is_counted = pc.not_equal(self.rejects.column("reason"), str(Reason.FORGOTTEN))
        return pc.sum(is_counted).as_py() or 0


def content_of(
    listing: pa.Table,
    outcomes: pa.Table,
    config: IngestConfig,
    published: PublishedSplits | None = None,
) -> Content:
    """Join a listing, row for row, with the outcome of each picture (OUTCOMES).

    Samples that are `published` keep their splits."""
    rows = listing.select(["uri", "etag", "label", "split", "group"])
    for name in ("sample_id", "shard", "row", "reason", "detail"):
        rows = rows.append_column(outcomes.schema.field(name), outcomes.column(name))

    rejects = rows.filter(pc.is_valid(rows.column("reason"))).select(REJECTS.names).cast(REJECTS)
    samples = rows.filter(pc.is_valid(rows.column("shard")))
    assert len(samples) + len(rejects) == len(listing), "every picture is a sample or a reject"

    # Without given shares the splits are folders, and missing ones are carved out of train.
    carve = config.split_shares is None
    shares = config.split_shares or shares_of_folders(listing.column("split"))
    splits = assign_splits(samples, shares, config.seed, carve=carve, published=published)
    samples = _with_split(samples, splits)
    without_duplicates = exclude_duplicates(samples)
    index = _with_split(samples, without_duplicates.splits).select(INDEX.names).cast(INDEX)
    repeats = without_duplicates.repeats
    return Content(index.combine_chunks(), rejects.combine_chunks(), repeats, shares)


def _with_split(samples: pa.Table, splits: pa.ChunkedArray) -> pa.Table:
    return samples.set_column(samples.column_names.index("split"), "split", splits)


def counts_of(content: Content) -> dict[str, Any]:
    """Return the counts that a manifest has of its version."""
    splits = _count_values(content.index.column("split"))
    labels = _count_values(content.index.column("label"))
    reasons = _count_values(content.rejects.column("reason"))

    return {
        "listed": content.listed,
        "samples": len(content.index),
        "rejects": len(content.rejects),
        "rejects_by_reason": dict(sorted(reasons.items())),
        "splits": {split: splits.get(split, 0) for split in SPLITS},
        "labels": dict(sorted(labels.items())),
        "repeats": asdict(content.repeats),
        "shares": content.shares and list(content.shares),
    }


def published_splits(
    manifest: Manifest | None, index: pa.Table, recipe: dict[str, Any]
) -> PublishedSplits | None:
    """Return the splits of the version before, which its samples keep under this `recipe`.

    None if there is no such version, or if its recipe assigned splits otherwise."""
    if manifest is None:
        return None
    if any(manifest.recipe.get(name) != recipe[name] for name in ("split", "seed", "group")):
        return None
    return PublishedSplits(index, published_shares(manifest))


def published_shares(manifest: Manifest) -> SplitShares | None:
    """Return the shares of a version's splits; None for an early version with splits by folder."""
    if shares := manifest.counts.get("shares"):
        return SplitShares(*shares)
    split: str = manifest.recipe["split"]
    return None if split == "folder" else parse_shares(split)


def _count_values(column: pa.ChunkedArray) -> dict[str, int]:
    counts = pc.value_counts(column.drop_null())
    values, numbers = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
    return dict(zip(values, numbers, strict=True))


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Differences of a version from its parent, in pictures."""

    added: int
    changed: int
    removed: int
    unchanged: int
    relabelled: int
    renamed: int


def changes_between(before: pa.Table, listing: pa.Table, now: pa.Table) -> Changes:
    """Compare two indexes. The new listing tells a removed picture from a rejected one.

    Example: before a.jpg (content x, label cat) and b.jpg (y); now a.jpg (x, label dog) and c.jpg
    (y). Then a.jpg is unchanged and relabelled, b.jpg is removed, c.jpg is added and renamed.
    """
    position = pc.index_in(now.column("uri"), before.column("uri"))
    was_listed = pc.is_valid(position)
    old = before.take(position)

    same_content = pc.fill_null(pc.equal(old.column("sample_id"), now.column("sample_id")), False)
    old_labels, labels = (pc.fill_null(rows.column("label"), "") for rows in (old, now))
    is_listed = pc.is_in(before.column("uri"), listing.column("uri"))
    removed = before.filter(pc.invert(is_listed))
    added = now.filter(pc.invert(was_listed))
    return Changes(
        added=len(added),
        changed=_count_true(pc.and_(was_listed, pc.invert(same_content))),
        removed=len(removed),
        unchanged=_count_true(same_content),
        relabelled=_count_true(pc.and_(same_content, pc.not_equal(old_labels, labels))),
        renamed=_count_true(pc.is_in(added.column("sample_id"), removed.column("sample_id"))),
    )


def _count_true(flags: Any) -> int:
    return pc.sum(pc.cast(flags, pa.int64())).as_py() or 0


def repeat_notes(repeats: Repeats) -> list[str]:
    """Return notes for the user on repeated pictures."""
    notes = []
    if repeats.duplicates:
        notes.append(f"{repeats.duplicates} pictures are exact copies of another")
    if repeats.held_out:
        notes.append(
            f"{repeats.held_out} copies are in no split: the same picture is in a safer one "
            "(test first)"
        )
    if repeats.two_labels:
        notes.append(
            f"{repeats.two_labels} pictures are in no split: the same content carries two labels"
        )

    return notes


def class_notes(new: list[str], vanished: list[str]) -> list[str]:
    """Return notes for the user on new and vanished classes."""
    changes = (("new", new), ("vanished", vanished))
    return [f"{change} classes: {', '.join(names)}" for change, names in changes if names]


def put_version_objects(
    store: Store,
    index: pa.Table,
    rejects: pa.Table,
    shards: list[ObjectRef],
    labels: list[ObjectRef],
) -> ObjectRef:
    """Write a version's index and rejects, and the list of all its objects; return the list.

    `labels` are the objects with its added labels."""
    objects = [DatasetObject("shard", ref) for ref in shards]
    objects += [DatasetObject("labels", ref) for ref in labels]
    for start in range(0, len(index), _INDEX_ROWS):
        part = put_table(store, "index", index.slice(start, _INDEX_ROWS))
        objects.append(DatasetObject("index", part))
    if len(rejects):
        objects.append(DatasetObject("rejects", put_table(store, "rejects", rejects)))
    return put_objects(store, sorted(objects, key=lambda entry: (entry.kind, entry.ref.path)))


def put_table(store: Store, folder: str, table: pa.Table) -> ObjectRef:
    """Write a table as a Parquet file that is named after its hash."""
    return put_object(store, f"{folder}/{{hash}}.parquet", to_parquet(table), len(table))
