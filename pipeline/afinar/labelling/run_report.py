"""The account of a labelling run: what it answered and rejected, and what the manifest keeps of that for the next.

A partition's entry in the manifest has one record per source: the answers of the source's last run, and of all its
pictures that stand in the partition. So the next run is compared without a look at any old part.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from afinar.labelling.stats import ENOUGH, Answers, Baseline, Drift, answers_of, drift
from afinar.predictions.manifest import Part
from afinar.storage.arrow import from_parquet
from afinar.storage.objects import get_object
from afinar.storage.store import Store
from afinar.storage.versions import Record

_EXAMPLES = 5  # rejects of each reason that a report shows

Rows = list[dict[str, Any]]


@dataclass
class Tally:
    """Answers and rejects of some parts. `examples` are a few rows (uri, reason, detail) of each reason."""

    answers: Answers = field(default_factory=Answers)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Rows] = field(default_factory=dict)

    def add_answers(self, table: pa.Table) -> None:
        """Count predictions: a table with `label` and `score`."""
        self.answers = self.answers.plus(answers_of(table))

    def add_rejects(self, table: pa.Table) -> None:
        """Count rejects: a table with `uri`, `reason` and `detail`."""
        for one in pc.value_counts(table.column("reason")).to_pylist():
            reason = one["values"]
            self.reasons[reason] += one["counts"]
            shown = self.examples.setdefault(reason, [])
            rows = table.filter(pc.equal(table.column("reason"), reason))
            shown += rows.slice(0, _EXAMPLES - len(shown)).to_pylist()

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        examples = {
            reason: (self.examples.get(reason, []) + other.examples.get(reason, []))[:_EXAMPLES]
            for reason in {**self.examples, **other.examples}
        }
        return Tally(self.answers.plus(other.answers), self.reasons + other.reasons, examples)


@dataclass(frozen=True)
class Account:
    """What one run did, over all that it published, and what it is compared with."""

    tally: Tally = field(default_factory=Tally)
    before: Baseline | None = None

    def drift(self) -> Drift:
        """The comparison."""
        return drift(self.before, self.tally.answers)

    def confidence(self) -> dict[str, Any]:
        """Mean and histogram of the run's scores, JSON-able; the mean is null of no answers."""
        mean = self.tally.answers.mean
        return {
            "mean": None if mean is None else round(mean, 6),
            "histogram": list(self.tally.answers.histogram),
        }


def read_tally(store: Store, parts: list[Part]) -> Tally:
    """Read what parts say."""
    tally = Tally()
    for part in parts:
        data = get_object(store, part.ref)
        if part.kind == "part":
            tally.add_answers(from_parquet(data, ["label", "score"]))
        elif part.kind == "rejects":
            tally.add_rejects(from_parquet(data, ["uri", "reason", "detail"]))
    return tally


def find_baseline(record: Record | None, partition: str, source: str) -> Baseline | None:
    """What a run of `source` into a partition is compared with, from the manifest `record` that it found.

    The last run of this source and model, where it labelled enough pictures to compare; else all of the source's
    pictures that the model had labelled; else, for a model's first run, all that the model before it had labelled. None
    where the folder says nothing of the source.
    """
    found = {
        name: _accounts(entry).get(source)
        for name, entry in (record or {}).get("partitions", {}).items()
    }
    mine = found.pop(partition, None)
    if mine:
        last, standing = Answers.of_dict(mine["run"]), Answers.of_dict(mine["standing"])
        if last.pictures >= ENOUGH:
            return Baseline(last, f"the previous run of this model ({last.pictures:,} pictures)")
        return Baseline(
            standing, f"what this model had labelled before ({standing.pictures:,} pictures)"
        )
    others = [(one["version"], name) for name, one in found.items() if one]
    if not others:
        return None
    _, newest = max(others)
    standing = Answers.of_dict((found[newest] or {})["standing"])
    return Baseline(standing, f"what model {newest} had said ({standing.pictures:,} pictures)")


def update_source_stats(
    entry: Record | None, source: str, version: int, run: Answers, gone: Answers, new: Answers
) -> Record:
    """The records of a partition's sources after a run, for its entry in manifest number `version`.

    `run` is what the run answered in all, `new` what it adds with this manifest, `gone` what it supersedes. Of pictures
    that two sources list, what the labelled one lacks is the other's.
    """
    sources = _accounts(entry)
    standing = {name: Answers.of_dict(one["standing"]) for name, one in sources.items()}
    standing.setdefault(source, Answers())
    for name in sorted(standing, key=lambda name: name != source):
        before = standing[name]
        standing[name], gone = before.minus(gone), gone.minus(before)
    standing[source] = standing[source].plus(new)
    mine = {"version": version, "run": run.as_dict(), "standing": standing[source].as_dict()}
    others = {name: {**one, "standing": standing[name].as_dict()} for name, one in sources.items()}
    return {**others, source: mine}


def _accounts(entry: Record | None) -> Record:
    found: Record = (entry or {}).get("accounts", {})
    return found
