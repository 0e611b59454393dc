"""What the next version of a dataset holds: pure functions from facts to index, rejects, counts and changes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.checks import parse_split
from afinar.config.jobs import IngestConfig
from afinar.dataset.schema import INDEX, REJECTS
from afinar.dataset.splits import Repeats, assign_splits, exclude_duplicates, shares_of_folders
from afinar.errors import Reason
from afinar.sources.entry import SPLITS


@dataclass(frozen=True)
class Content:
    """Rows of one version."""

    index: pa.Table
    rejects: pa.Table
    repeats: Repeats

    @property
    def listed(self) -> int:
        """Pictures in the source: each is a sample or a reject."""
        return len(self.index) + len(self.rejects)

    @property
    def unusable(self) -> int:
        """Rejects that speak against the source: what was erased on request does not."""
        return (
            pc.sum(pc.not_equal(self.rejects.column("reason"), str(Reason.FORGOTTEN))).as_py() or 0
        )


def content_of(listing: pa.Table, facts: pa.Table, config: IngestConfig) -> Content:
    """Index and rejects: the listing joined, row for row, with what became of each picture."""
    rows = listing.select(["uri", "etag", "label", "split", "group"])
    for name in ("sample_id", "shard", "row", "reason", "detail"):
        rows = rows.append_column(facts.schema.field(name), facts.column(name))
    rejects = rows.filter(pc.is_valid(rows.column("reason"))).select(REJECTS.names).cast(REJECTS)
    samples = rows.filter(pc.is_valid(rows.column("shard")))
    assert len(samples) + len(rejects) == len(listing), (
        "every listed picture is a sample or a reject"
    )
    shares = parse_split(config.split)
    splits = assign_splits(
        samples,
        shares or shares_of_folders(listing.column("split")),
        config.seed,
        carve=shares is None,
    )
    samples = _with_split(samples, splits)
    splits, repeats = exclude_duplicates(samples)
    index = _with_split(samples, splits).select(INDEX.names).cast(INDEX).combine_chunks()
    return Content(index, rejects.combine_chunks(), repeats)


def _with_split(samples: pa.Table, splits: pa.ChunkedArray) -> pa.Table:
    return samples.set_column(samples.column_names.index("split"), "split", splits)


def counts_of(content: Content) -> dict[str, Any]:
    """What the manifest's head says of a version's rows."""
    splits, labels = (_counted(content.index.column(name)) for name in ("split", "label"))
    reasons = _counted(content.rejects.column("reason"))
    return {
        "listed": content.listed,
        "samples": len(content.index),
        "rejects": len(content.rejects),
        "rejects_by_reason": dict(sorted(reasons.items())),
        "splits": {split: splits.get(split, 0) for split in SPLITS},
        "labels": dict(sorted(labels.items())),
        "repeats": asdict(content.repeats),
    }


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    counts = pc.value_counts(column.drop_null())
    return dict(
        zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How a version differs from its parent, in pictures."""

    added: int
    changed: int
    removed: int
    unchanged: int
    relabelled: int
    renamed: int


def changes_between(before: pa.Table, listing: pa.Table, now: pa.Table) -> Changes:
    """Compare two indexes; the new listing tells a vanished picture from a rejected one."""
    at = pc.index_in(now.column("uri"), before.column("uri"))
    old = before.take(at)
    there = pc.is_valid(at)
    same = pc.equal(old.column("sample_id"), now.column("sample_id"))
    labels = pc.not_equal(
        pc.fill_null(old.column("label"), ""), pc.fill_null(now.column("label"), "")
    )
    vanished = before.filter(pc.invert(pc.is_in(before.column("uri"), listing.column("uri"))))
    fresh = now.filter(pc.invert(there))
    return Changes(
        added=len(fresh),
        changed=_count(pc.and_(there, pc.invert(pc.fill_null(same, False)))),
        removed=len(vanished),
        unchanged=_count(pc.fill_null(same, False)),
        relabelled=_count(pc.and_(pc.fill_null(same, False), labels)),
        renamed=_count(pc.is_in(fresh.column("sample_id"), vanished.column("sample_id"))),
    )


def _count(flags: Any) -> int:
    return pc.sum(pc.cast(flags, pa.int64())).as_py() or 0


def repeat_notes(repeats: Repeats) -> list[str]:
    """What a person should know of repeated pictures."""
    notes = []
    if repeats.duplicates:
        notes.append(f"{repeats.duplicates} pictures are exact copies of another")
    if repeats.held_out:
        notes.append(
            f"{repeats.held_out} copies are in no split: the same picture is in a safer one (test first)"
        )
    if repeats.two_labels:
        notes.append(
            f"{repeats.two_labels} pictures are in no split: the same content carries two labels"
        )
    return notes


def class_notes(new: list[str], vanished: list[str]) -> list[str]:
    """New and vanished classes in words."""
    found = (("new", new), ("vanished", vanished))
    return [f"{kind} classes: {', '.join(names)}" for kind, names in found if names]
