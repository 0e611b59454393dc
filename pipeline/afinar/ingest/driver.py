"""The ingest job: listing → plan → shards → one new version of the dataset.

An interrupted run left its plan behind; the same command resumes that plan, publishes it, and then
looks at the source again, so that what changed meanwhile becomes the next version.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from afinar.config.jobs import IngestConfig, fingerprint
from afinar.dataset.manifest import (
    Manifest,
    current_manifest,
    get_objects,
    now_utc,
    publish_manifest,
    read_rows,
)
from afinar.dataset.schema import INDEX, OUTCOMES
from afinar.errors import NotFoundError, RequestError, ShortfallError
from afinar.ingest.compaction import plan_compaction, remap_index, shards_to_compact
from afinar.ingest.plan import ShardTask, forget_plan_name, join_outcomes, make_plan, plan_name
from afinar.ingest.publishing import (
    TRANSIENT,
    compact_shards,
    get_all,
    parent_outcomes,
    put_table,
    put_version_objects,
)
from afinar.ingest.source import list_source
from afinar.ingest.version import (
    Content,
    changes_between,
    class_notes,
    content_of,
    counts_of,
    repeat_notes,
)
from afinar.ingest.worker import build_shard
from afinar.pictures.preprocessing import StoredView
from afinar.sources.listing import classes_of
from afinar.sources.listing import fingerprint as listing_fingerprint
from afinar.storage.arrow import from_parquet
from afinar.storage.commit import (
    UnitMarker,
    committed_units,
    new_owner,
    probe_conditional_put,
    read_markers,
)
from afinar.storage.objects import ObjectRef
from afinar.storage.open import normalize_uri, open_store
from afinar.units.executor import Executor
from afinar.units.plan import count_pending, interrupted_plan, iter_units, store_plan, unit_names
from afinar.units.progress import ProgressReporter

logger = logging.getLogger(__name__)

_ATTEMPTS = 20  # at publishing on top of rivals


@dataclass(kw_only=True)
class IngestSummary:
    """What an ingest did. listed = added + changed + unchanged + rejected."""

    dataset: str
    version: int
    lineage: int
    listed: int
    samples: int
    rejects: int
    rejects_by_reason: dict[str, int]
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    relabelled: int = 0
    renamed: int = 0
    classes: list[str]
    new_classes: list[str] = field(default_factory=list)
    vanished_classes: list[str] = field(default_factory=list)
    splits: dict[str, int]
    repeats: dict[str, int]
    seconds: float = 0.0
    images_per_second: float = 0.0
    units_run: int = 0
    shards_compacted: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class VersionConflictError(ShortfallError):
    """Another ingest published this version's number first."""


class Ingest:
    """One ingest into one dataset."""

    def __init__(self, config: IngestConfig, executor: Executor) -> None:
        self.config = config
        self.executor = executor
        self.source, self.dataset = normalize_uri(config.source), normalize_uri(config.dataset)
        self.store = open_store(self.dataset)
        self.view = StoredView(size=config.size, fit=config.fit, store=config.store)
        self.owner = new_owner()
        # What determines the dataset besides the pictures; the budget and the workers do not.
        self.recipe = {
            "source": self.source,
            "labels": config.labels,
            "extensions": config.extensions,
            "split": config.split,
            "seed": config.seed,
            "group": config.group,
        }
        self.recipe_id = fingerprint([self.recipe, self.view.as_dict()])[:8]
        self._work = RunStats()

    def run(self) -> IngestSummary:
        """Bring the dataset up to date with its source and say what was done."""
        started = time.monotonic()
        self.store.require_target()
        summary = self._bring_up_to_date()
        summary.units_run, summary.stages = self._work.units, self._work.rounded()
        summary.shards_compacted = self._work.compacted
        summary.notes = list(dict.fromkeys(self._work.notes + summary.notes))
        summary.seconds = round(time.monotonic() - started, 3)
        summary.images_per_second = round(self._work.pictures / summary.seconds, 1)
        return summary

    def _bring_up_to_date(self) -> IngestSummary:
        summary: IngestSummary | None = None
        for _ in range(_ATTEMPTS):
            parent = current_manifest(self.store)
            self._check_parent(parent)
            name = plan_name(parent.version + 1 if parent else 1, self.recipe_id)
            plan = interrupted_plan(self.store, name)
            resumed = plan is not None
            if plan is None:
                plan = self._plan(name, parent)
            if plan is None:
                assert parent is not None
                return summary or self._unchanged(parent)
            try:
                self._build(plan, parent)
                summary = self._publish(name, plan, parent)
            except VersionConflictError:
                logger.info("another job published first; building on its version")
                continue
            except NotFoundError:
                if current_manifest(self.store) == parent:
                    raise
                logger.info("another job published first and cleaned up; building on its version")
                continue
            except ShortfallError as shortfall:
                if not resumed:
                    raise  # the plan stays: with a larger budget it is published as it is
                logger.info(f"the plan of the interrupted run is dropped: {shortfall}")
                self.store.delete(name)
                continue
            if not resumed:
                return summary
            logger.info("the interrupted run is complete; looking at the source again")
        raise ShortfallError(
            f"{_ATTEMPTS} other ingests into {self.dataset} published first: run the command again"
        )

    def _check_parent(self, parent: Manifest | None) -> None:
        if parent is not None and parent.source["uri"] != self.source:
            raise RequestError(
                f"{self.dataset} holds the pictures of {parent.source['uri']}; from {self.source} all of them would be "
                "replaced. Give that source, or another DATASET."
            )

    def _plan(self, name: str, parent: Manifest | None) -> pa.Table | None:
        """Make and store the plan of the next version; None when the current one needs no successor."""
        listing, self._work.notes = list_source(self.config)
        known = self._known(parent)
        if parent and self._is_current(parent, listing) and not self._retries(parent):
            return None
        if parent and parent.preprocessing != self.view.as_dict():
            logger.info(
                f"the preprocessing is not version {parent.version}'s: a new lineage begins, every picture is read anew"
            )
        probe_conditional_put(self.store)
        version = parent.version + 1 if parent else 1
        plan = store_plan(self.store, name, make_plan(listing, known, self.view, version))
        if any(info.name == forget_plan_name(version) for info in self.store.walk("plans")):
            raise ShortfallError(
                f"pictures are being erased from {self.dataset}: run the command again when that is done"
            )
        return plan

    def _try_again(self, markers: list[UnitMarker], facts: list[pa.Table]) -> None:
        """Let the next run do again what failed in transit."""
        for marker, table in zip(markers, facts, strict=True):
            if TRANSIENT & set(table.column("reason").unique().to_pylist()):
                self.store.delete(f"units/{marker.unit}.json")

    def _known(self, parent: Manifest | None) -> pa.Table:
        if parent is None:
            return OUTCOMES.empty_table()
        return parent_outcomes(self.store, parent, self.view)

    def _is_current(self, parent: Manifest, listing: pa.Table) -> bool:
        return (
            parent.recipe == self.recipe
            and parent.preprocessing == self.view.as_dict()
            and parent.source["fingerprint"] == listing_fingerprint(listing)
        )

    def _retries(self, parent: Manifest) -> bool:
        return bool(TRANSIENT & parent.counts["rejects_by_reason"].keys())

    def _build(self, plan: pa.Table, parent: Manifest | None) -> None:
        """Run the plan's units that no earlier run committed."""
        units = unit_names(plan)
        done = committed_units(self.store) & set(units) if units else set()
        if done:
            logger.info(f"{len(done)} of {len(units)} units are already committed")
        pictures = count_pending(plan, done)
        if not pictures:
            return
        forgotten = tuple(parent.forgotten) if parent else ()
        tasks = (
            ShardTask(
                unit=unit,
                source=self.source,
                dataset=self.dataset,
                view=self.view,
                entries=entries,
                forgotten=forgotten,
            )
            for unit, entries in iter_units(plan, self.source, done)
        )
        with ProgressReporter("ingest", pictures) as meter:
            for result in self.executor.run(build_shard, tasks):
                meter.add(result.pictures, result.rejects, result.stages)
                self._work.count(result.pictures, result.stages)

    def _publish(self, name: str, plan: pa.Table, parent: Manifest | None) -> IngestSummary:
        markers = read_markers(self.store, unit_names(plan))
        fresh = [
            from_parquet(data)
            for data in get_all(self.store, [marker.objects["facts"] for marker in markers])
        ]
        facts = join_outcomes(
            plan, self._known(parent), pa.concat_tables([OUTCOMES.empty_table(), *fresh])
        )
        content = content_of(plan, facts, self.config)
        try:
            self._check_budget(content)
        except ShortfallError:
            self._try_again(markers, fresh)
            raise
        shards = [marker.objects["shard"] for marker in markers if "shard" in marker.objects]
        shards += get_objects(self.store, parent, "shard") if parent else []
        version = parent.version + 1 if parent else 1
        index, shards = self._compact(content.index, shards, version)
        content = Content(index, content.rejects, content.repeats)
        manifest = self._manifest(version, content, plan, shards, parent)
        if parent is not None and _same_content(manifest, parent):
            self._try_again(markers, fresh)
            self.store.delete(name)
            return self._unchanged(parent)
        summary = self._summary(manifest, content, plan, parent)
        if not publish_manifest(self.store, manifest, self.owner):
            raise VersionConflictError(
                f"version {manifest.version} of {self.dataset} is another ingest's"
            )
        return summary

    def _compact(
        self, index: pa.Table, shards: list[ObjectRef], version: int
    ) -> tuple[pa.Table, list[ObjectRef]]:
        """Rewrite shards of which too much is dead; the index and the shards it names afterwards."""
        tasks = plan_compaction(shards_to_compact(index, shards), self.dataset, version, self.view)
        if tasks:
            markers = compact_shards(self.store, self.executor, tasks)
            index = remap_index(index, tasks, markers)
            shards = shards + [marker.objects["shard"] for marker in markers]
            self._work.compacted += sum(len(task.sources) for task in tasks)
        named = set(index.column("shard").unique().to_pylist())
        return index, [
            ref for ref in {ref.path: ref for ref in shards}.values() if ref.path in named
        ]

    def _manifest(
        self,
        version: int,
        content: Content,
        plan: pa.Table,
        shards: list[ObjectRef],
        parent: Manifest | None,
    ) -> Manifest:
        same_lineage = parent is not None and parent.preprocessing == self.view.as_dict()
        return Manifest(
            version=version,
            parent=parent.version if parent else None,
            lineage=parent.lineage if parent and same_lineage else version,
            created=now_utc(),
            source={"uri": self.source, "fingerprint": listing_fingerprint(plan)},
            recipe=self.recipe,
            preprocessing=self.view.as_dict(),
            classes=classes_of(content.index),
            counts=counts_of(content),
            objects=put_version_objects(self.store, content.index, content.rejects, shards),
            forgotten=parent.forgotten if parent else [],
        )

    def _check_budget(self, content: Content) -> None:
        over = content.unusable > self.config.max_reject_rate * content.listed
        if over or not len(content.index):
            table = put_table(self.store, "rejects", content.rejects)
            words = (
                f", over --max-reject-rate {self.config.max_reject_rate:g}"
                if over
                else ": nothing would be left"
            )
            raise ShortfallError(
                f"{content.unusable} of {content.listed} pictures were rejected{words}; no version was published. "
                f"Their reasons: {self.store.uri(table.path)}"
            )

    def _summary(
        self, manifest: Manifest, content: Content, plan: pa.Table, parent: Manifest | None
    ) -> IngestSummary:
        before = read_rows(self.store, parent, "index", INDEX) if parent else INDEX.empty_table()
        changes = changes_between(before, plan, content.index)
        summary = _summary_of(manifest, self.dataset)
        for name, count in changes.__dict__.items():
            setattr(summary, name, count)
        if parent:
            summary.new_classes = sorted(set(manifest.classes) - set(parent.classes))
            summary.vanished_classes = sorted(set(parent.classes) - set(manifest.classes))
            summary.notes += class_notes(summary.new_classes, summary.vanished_classes)
            if manifest.lineage == manifest.version:
                summary.notes.append(
                    f"version {manifest.version} begins a new lineage: the preprocessing changed"
                )
        summary.notes += repeat_notes(content.repeats)
        assert (
            summary.listed == summary.added + summary.changed + summary.unchanged + summary.rejects
        )
        return summary

    def _unchanged(self, parent: Manifest) -> IngestSummary:
        summary = _summary_of(parent, self.dataset)
        summary.unchanged = summary.samples
        summary.notes.append(
            f"nothing to do: version {parent.version} already holds this source as it is"
        )
        return summary


@dataclass
class RunStats:
    """What one run did, over all versions that it published."""

    units: int = 0
    pictures: int = 0
    compacted: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, pictures: int, stages: dict[str, float]) -> None:
        self.units += 1
        self.pictures += pictures
        for name, seconds in stages.items():
            self.stages[name] = self.stages.get(name, 0.0) + seconds

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 2) for name, seconds in self.stages.items()}


def _summary_of(manifest: Manifest, dataset: str) -> IngestSummary:
    counts: dict[str, Any] = manifest.counts
    return IngestSummary(
        dataset=dataset,
        version=manifest.version,
        lineage=manifest.lineage,
        listed=counts["listed"],
        samples=counts["samples"],
        rejects=counts["rejects"],
        rejects_by_reason=counts["rejects_by_reason"],
        classes=manifest.classes,
        splits=counts["splits"],
        repeats=counts["repeats"],
    )


def _same_content(one: Manifest, other: Manifest) -> bool:
    return (one.objects, one.source, one.recipe) == (other.objects, other.source, other.recipe)
