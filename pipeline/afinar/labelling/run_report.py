"""Statistics of a labelling run, and those in the manifest that the next run is compared with.

A partition's entry in the manifest has a record for each source: the predictions of the source's
last run, and all its published predictions. So the next run is compared without reading old parts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from afinar.labelling.contact_sheet import SCHEMA, ContactSheet
from afinar.labelling.stats import (
    MIN_PICTURES,
    Baseline,
    Drift,
    LabelStats,
    count_labels,
    detect_drift,
)
from afinar.predictions.manifest import Part, Partition, PredictionManifest
from afinar.predictions.part_reader import read_part
from afinar.storage.records import Record
from afinar.storage.store import Store

_EXAMPLES = 5  # rejects of each reason that a report shows

RejectRows = list[dict[str, Any]]


@dataclass
class RunStats:
    """Counts of some parts. `examples` are a few rejects (uri, reason, detail) of each reason.

    `sheet` has the most and the least certain predictions of each class.
    """

    labels: LabelStats = field(default_factory=LabelStats)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, RejectRows] = field(default_factory=dict)
    sheet: ContactSheet = field(default_factory=ContactSheet)

    def add_predictions(self, table: pa.Table) -> None:
        """Count predictions: a table with `label` and `score`."""
        self.labels = self.labels.plus(count_labels(table))

    def add_rejects(self, table: pa.Table) -> None:
        """Count rejects: a table with `uri`, `reason` and `detail`."""
        for count in pc.value_counts(table.column("reason")).to_pylist():
            reason = count["values"]
            self.reasons[reason] += count["counts"]
            examples = self.examples.setdefault(reason, [])
            rows = table.filter(pc.equal(table.column("reason"), reason))
            examples += rows.slice(0, _EXAMPLES - len(examples)).to_pylist()

    def plus(self, other: RunStats) -> RunStats:
        """Return the sum of both."""
        examples = {
            reason: (self.examples.get(reason, []) + other.examples.get(reason, []))[:_EXAMPLES]
            for reason in {**self.examples, **other.examples}
        }
        return RunStats(
            self.labels.plus(other.labels),
            self.reasons + other.reasons,
            examples,
            self.sheet.plus(other.sheet),
        )


@dataclass(frozen=True)
class RunReport:
    """Statistics of all that one run published, and the baseline that it is compared with."""

    stats: RunStats = field(default_factory=RunStats)
    baseline: Baseline | None = None

    def drift(self) -> Drift:
        """Return the comparison with the baseline."""
        return detect_drift(self.baseline, self.stats.labels)

    def confidence(self) -> dict[str, Any]:
        """Return mean (None without predictions) and histogram of the run's scores, as JSON."""
        mean = self.stats.labels.mean
        return {
            "mean": None if mean is None else round(mean, 6),
            "histogram": list(self.stats.labels.histogram),
        }


def read_stats(store: Store, parts: list[Part]) -> RunStats:
    """Read parts and count their rows."""
    stats = RunStats()
    for part in parts:
        if part.kind == "part":
            predictions = read_part(store, part, SCHEMA.names)
            stats.add_predictions(predictions)
            stats.sheet.add(predictions)
        elif part.kind == "rejects":
            stats.add_rejects(read_part(store, part, ["uri", "reason", "detail"]))
    return stats


@dataclass(frozen=True, slots=True)
class SourceStats:
    """Statistics of one source in one partition.

    `run` counts its last run, which published manifest `version`; `published` counts all its
    predictions in the partition.
    """

    version: int
    run: LabelStats
    published: LabelStats

    def as_dict(self) -> Record:
        return {
            "version": self.version,
            "run": self.run.as_dict(),
            "standing": self.published.as_dict(),
        }

    @classmethod
    def from_dict(cls, record: Record) -> SourceStats:
        run, published = (LabelStats.from_dict(record[key]) for key in ("run", "standing"))
        return cls(record["version"], run, published)


def find_baseline(manifest: PredictionManifest, partition: str, source: str) -> Baseline | None:
    """Return what a run of `source` into a partition is compared with.

    In this order of preference, from the manifest that the run found:
    1. the last run of this source into this partition, if it labelled `MIN_PICTURES` or more,
    2. all pictures of the source in this partition,
    3. all pictures of the source in the partition that was written last before,
    4. None: this is the first run of the source into the folder.
    """
    stats = {
        name: SourceStats.from_dict(entry.accounts[source])
        for name, entry in manifest.partitions.items()
        if source in entry.accounts
    }
    if partition in stats:
        run, published = stats[partition].run, stats[partition].published
        if run.pictures >= MIN_PICTURES:
            return Baseline(run, f"the previous run of this model ({run.pictures:,} pictures)")
        name = f"all pictures that this model has labelled before ({published.pictures:,} pictures)"
        return Baseline(published, name)
    if not stats:
        return None

    newest = max(stats, key=lambda name: (stats[name].version, name))
    published = stats[newest].published
    return Baseline(published, f"the labels of model {newest} ({published.pictures:,} pictures)")


def update_source_stats(
    partition: Partition | None,
    source: str,
    version: int,
    run: LabelStats,
    removed: LabelStats,
    added: LabelStats,
) -> dict[str, Record]:
    """Return the statistics of each source for the partition's entry in manifest number `version`.

    `run` counts the whole run of `source`, `added` the predictions that this version adds,
    `removed` those that it replaces. Two sources may list the same picture, and the manifest does
    not keep which of them labelled it. So `removed` is subtracted from `source` as far as it goes,
    and the remainder from the other sources.

    Example: source a has published moss 3, rust 1. Source b lists one of a's moss pictures and a
    new one; its first run labels both as moss. It adds moss 2 and removes moss 1. b has published
    nothing yet, so that moss 1 is subtracted from a: a has moss 2, rust 1, and b has moss 2. The
    sum, 5, is the number of rows in the partition.
    """
    accounts = partition.accounts if partition else {}
    stats = {name: SourceStats.from_dict(record) for name, record in accounts.items()}
    published = {name: entry.published for name, entry in stats.items()}
    published.setdefault(source, LabelStats())
    published = _subtract(published, removed, first=source)
    published[source] = published[source].plus(added)

    updated = {
        name: SourceStats(entry.version, entry.run, published[name])
        for name, entry in stats.items()
    }
    updated[source] = SourceStats(version, run, published[source])
    return {name: entry.as_dict() for name, entry in updated.items()}


def remove_from_stats(partition: Partition, removed: LabelStats) -> dict[str, Record]:
    """Return the statistics of each source without predictions that are erased.

    They are subtracted as in `update_source_stats`; those of last runs stay."""
    stats = {name: SourceStats.from_dict(record) for name, record in partition.accounts.items()}
    published = {name: entry.published for name, entry in stats.items()}
    published = _subtract(published, removed, first=partition.source)
    return {
        name: SourceStats(entry.version, entry.run, published[name]).as_dict()
        for name, entry in stats.items()
    }


def _subtract(
    published: dict[str, LabelStats], removed: LabelStats, first: str
) -> dict[str, LabelStats]:
    """Subtract from the source `first` as far as it goes, and the remainder from the others."""
    left = dict(published)
    for name in sorted(published, key=lambda name: name != first):
        remainder = removed.minus(left[name])
        left[name] = left[name].minus(removed)
        removed = remainder
    return left
