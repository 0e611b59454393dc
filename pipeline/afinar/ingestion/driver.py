"""The ingest driver: list the source, write shards, publish one version of the dataset."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.base import fingerprint
from afinar.config.formats import extensions_identity
from afinar.config.ingest import IngestConfig
from afinar.dataset.manifest import (
    Manifest,
    now_utc,
    publish_manifest,
    read_tables,
)
from afinar.dataset.schema import OUTCOMES
from afinar.dataset.stratification import few_notes
from afinar.errors import RequestError, ShortfallError
from afinar.ingestion.compaction import (
    compact_shards,
    plan_compaction,
    remap_index,
    shards_to_compact,
)
from afinar.ingestion.parent import Parent, open_parent
from afinar.ingestion.plan import (
    ShardTask,
    forget_plan_name,
    join_outcomes,
    make_plan,
    plan_name,
)
from afinar.ingestion.source import list_source
from afinar.ingestion.stored_view import find_view, view_notes
from afinar.ingestion.version import (
    Content,
    changes_between,
    class_notes,
    content_of,
    counts_of,
    published_splits,
    put_table,
    put_version_objects,
    repeat_notes,
)
from afinar.ingestion.worker import make_shard_builder
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.profiles import require_colour_management
from afinar.pictures.rejects import TRANSIENT, exceeds_budget
from afinar.sources.added_labels import ADDED, apply_added, read_added
from afinar.sources.listing import AnnotatedListing, classes_of
from afinar.sources.listing import fingerprint as listing_fingerprint
from afinar.sources.uri_list import is_list, list_base
from afinar.storage.contents import require_target_for
from afinar.storage.markers import UnitMarker, marker_name, read_markers
from afinar.storage.objects import ObjectRef
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.versions import new_owner
from afinar.units.cut import iter_units
from afinar.units.executor import Executor, RetryPolicy
from afinar.units.plans import FOLDER as PLANS
from afinar.units.plans import Plan, left_out_of, with_left_out
from afinar.units.results import UnitResult
from afinar.units.run import (
    IncrementalJob,
    Planned,
    Published,
    VersionConflictError,
    run_incremental,
)
from afinar.units.tasks import retry_policy

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class IngestSummary:
    """Counts of an ingest. listed = added + changed + unchanged + rejected."""

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
    left_out: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    images_per_second: float = 0.0
    units_run: int = 0
    shards_compacted: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class IngestOutcome:
    """Outcome of an ingest; `published` is False if the current version had this content."""

    summary: IngestSummary
    published: bool


def run_ingest(config: IngestConfig, executor: Executor) -> IngestOutcome:
    """Bring a dataset up to date with its source and publish a version of it.

    Raises RequestError for a source or a target that cannot serve, ShortfallError if too many
    pictures were rejected.
    """
    job = IngestJob(config, executor)
    result = run_incremental(job)
    summary, totals = result.summary, result.totals

    summary.units_run, summary.stages = totals.units, totals.rounded_phases()
    summary.shards_compacted = job.shards_compacted
    summary.notes = list(dict.fromkeys(result.notes + summary.notes))
    summary.left_out, summary.seconds = result.left_out, result.seconds
    summary.images_per_second = result.pictures_per_second
    return IngestOutcome(summary, result.published)


class IngestJob(IncrementalJob[Parent, IngestSummary]):
    """One ingest into one dataset, as the incremental runner needs it."""

    name: ClassVar[str] = "ingest"

    def __init__(self, config: IngestConfig, executor: Executor) -> None:
        require_colour_management()
        self.config = config
        self.executor = executor
        self.source, self.dataset = normalize_uri(config.source), normalize_uri(config.dataset)
        self.store = open_store(self.dataset)
        # What names of pictures are relative to: nothing if a list names them.
        self.root = "" if is_list(self.source) else self.source
        self.owner = new_owner()
        # What determines the dataset besides the pictures and the stored view.
        self.recipe = {
            "source": self.source,
            "labels": config.labels,
            "extensions": config.extensions,
            "split": config.split,
            "seed": config.seed,
            "group": config.group,
        }
        self.shards_compacted = 0
        # Labels that were added, by this ingest too: of the plan that was made last.
        self._added = ADDED.empty_table()

    @cached_property
    def view(self) -> StoredView:
        """The stored view."""
        return find_view(
            self.config, self.store, lambda version, view: plan_name(version, self._recipe_id(view))
        )

    def _recipe_id(self, view: StoredView) -> str:
        named = {**self.recipe, "extensions": extensions_identity(self.config.extensions)}
        return fingerprint([named, view.as_dict()])[:8]

    def open_current(self) -> Parent:
        """Return the parent. Raises RequestError if it holds the pictures of another source."""
        require_target_for(self.store, "a dataset", self.source)
        parent = open_parent(self.store, self.view)
        if parent.manifest is not None and parent.manifest.source["uri"] != self.source:
            raise RequestError(
                f"{self.dataset} holds the pictures of {parent.manifest.source['uri']}; an ingest "
                f"of {self.source} would replace all of them. Give that source, or another DATASET."
            )
        return parent

    def plan_name(self, current: Parent) -> str:
        return plan_name(current.next_version, self._recipe_id(self.view))

    def make_plan(self, current: Parent) -> Planned:
        source = list_source(self.config)
        self._added = self._add_labels(source, current)
        table = make_plan(source.listing, current.outcomes, self.view, current.next_version)
        notes = [
            *source.notes,
            *view_notes(self.view, current.manifest, len(source.listing)),
        ]
        return Planned(with_left_out(table, source.left_out), notes)

    def _add_labels(self, source: AnnotatedListing, current: Parent) -> pa.Table:
        """Apply labels that were added to the dataset, and those of --add-labels; return all."""
        base = list_base(self.source) if is_list(self.source) else self.source
        given = self.config.add_labels
        rows = read_added(normalize_uri(given), base) if given else None
        known = current.index.select(["uri", "etag"])
        return apply_added(source, current.added_labels, rows, known)

    def root_of(self, table: pa.Table) -> str:
        """Return what names of the plan's pictures are relative to, "" if some lie elsewhere."""
        below = f"{self.root.rstrip('/')}/"
        return self.root if pc.all(pc.starts_with(table.column("uri"), below)).as_py() else ""

    def is_current(self, table: pa.Table, current: Parent) -> bool:
        """Return True if the parent has this listing, recipe and preprocessing, none to retry."""
        parent = current.manifest
        if parent is None or not current.has_view:
            return False
        return (
            _is_same_recipe(parent.recipe, self.recipe)
            and parent.source["fingerprint"] == listing_fingerprint(table)
            and not TRANSIENT & parent.counts["rejects_by_reason"].keys()
        )

    def check_lease(self, current: Parent) -> None:
        """Raise ShortfallError if `forget` is erasing pictures: its plan is a lease."""
        lease = forget_plan_name(current.next_version)
        if any(info.name == lease for info in self.store.walk(PLANS)):
            raise ShortfallError(
                f"pictures are being erased from {self.dataset}: run the command again when that "
                "is done"
            )

    def run_units(self, table: pa.Table, done: set[str], current: Parent) -> Iterator[UnitResult]:
        # Hashes that were erased on request travel with every unit: workers reject these pictures.
        forgotten = tuple(current.manifest.forgotten) if current.manifest else ()
        root = self.root_of(table)
        tasks = (
            ShardTask(
                unit=unit,
                source=root,
                dataset=self.dataset,
                view=self.view,
                entries=entries,
                forgotten=forgotten,
            )
            for unit, entries in iter_units(table, root, done)
        )
        policy: RetryPolicy[ShardTask] = retry_policy(self.config.unit_timeout_s)
        return self.executor.run(make_shard_builder, tasks, policy)

    def is_overtaken(self, plan: Plan | None, current: Parent) -> bool:
        del plan
        return open_parent(self.store, self.view).manifest != current.manifest

    def publish(self, plan: Plan, current: Parent) -> Published[IngestSummary]:
        """Publish the next version from the parent and the committed units."""
        markers = read_markers(self.store, plan.units, required=("facts",))
        fresh = self._read_outcomes(markers)
        known = pa.concat_tables([OUTCOMES.empty_table(), *fresh])
        outcomes = join_outcomes(plan.table, current.outcomes, known)
        published = published_splits(current.manifest, current.index, self.recipe)
        content = content_of(plan.table, outcomes, self.config, published)
        try:
            self._check_budget(content)
        except ShortfallError:
            self._delete_transient(markers, fresh)
            raise

        # Objects first, then the manifest that names them.
        shards = [marker.objects["shard"] for marker in markers if "shard" in marker.objects]
        index, shards = self._compact(content.index, shards + current.shards, current.next_version)
        content = replace(content, index=index)
        manifest = self._manifest(content, plan.table, shards, current)
        if current.manifest is not None and _has_same_content(manifest, current.manifest):
            self._delete_transient(markers, fresh)
            self.store.delete(plan.name)
            return Published(self.unchanged(plan.table, current), is_new=False)

        summary = self._summary(manifest, content, plan.table, current)
        if not publish_manifest(self.store, manifest, self.owner):
            raise VersionConflictError(
                f"another ingest published version {manifest.version} of {self.dataset} first"
            )
        return Published(summary)

    def unchanged(self, table: pa.Table, current: Parent) -> IngestSummary:
        del table
        assert current.manifest is not None, "a dataset without a version needs one"
        summary = _summary_of(current.manifest, self.dataset)
        summary.unchanged = summary.samples
        summary.notes.append(
            f"nothing to do: version {current.manifest.version} already holds this source as it is"
        )
        return summary

    def _read_outcomes(self, markers: list[UnitMarker]) -> list[pa.Table]:
        refs = [marker.objects["facts"] for marker in markers]
        return read_tables(self.store, refs, OUTCOMES, required=["uri"])

    def _delete_transient(self, markers: list[UnitMarker], outcomes: list[pa.Table]) -> None:
        """Delete the markers of units with transient rejects: the next run runs them again."""
        for marker, table in zip(markers, outcomes, strict=True):
            if TRANSIENT & set(table.column("reason").unique().to_pylist()):
                self.store.delete(marker_name(marker.unit))

    def _compact(
        self, index: pa.Table, shards: list[ObjectRef], version: int
    ) -> tuple[pa.Table, list[ObjectRef]]:
        """Rewrite shards with too many dead rows; return the index and the shards that it names."""
        tasks = plan_compaction(shards_to_compact(index, shards), self.dataset, version, self.view)
        if tasks:
            markers = compact_shards(self.store, self.executor, tasks)
            index = remap_index(index, tasks, markers)
            shards = shards + [marker.objects["shard"] for marker in markers]
            self.shards_compacted += sum(len(task.sources) for task in tasks)

        named = set(index.column("shard").unique().to_pylist())
        unique = {ref.path: ref for ref in shards}
        return index, [ref for path, ref in unique.items() if path in named]

    def _manifest(
        self, content: Content, plan: pa.Table, shards: list[ObjectRef], current: Parent
    ) -> Manifest:
        parent, version = current.manifest, current.next_version
        return Manifest(
            version=version,
            parent=parent.version if parent else None,
            lineage=parent.lineage if parent and current.has_view else version,
            created=now_utc(),
            source={"uri": self.source, "fingerprint": listing_fingerprint(plan)},
            recipe=self.recipe,
            preprocessing=self.view.as_dict(),
            classes=classes_of(content.index),
            counts={**counts_of(content), "left_out": left_out_of(plan)},
            objects=put_version_objects(
                self.store, content.index, content.rejects, shards, self._put_added(plan, current)
            ),
            forgotten=parent.forgotten if parent else [],
        )

    def _put_added(self, plan: pa.Table, current: Parent) -> list[ObjectRef]:
        """Write the added labels of planned pictures; return their objects.

        The plan of an interrupted run may be older than these labels: its version has those of the
        parent, and the next one has all.
        """
        added = self._added if len(self._added) else current.added_labels
        added = added.filter(pc.is_in(added.column("uri"), plan.column("uri")))
        return [put_table(self.store, "labels", added)] if len(added) else []

    def _check_budget(self, content: Content) -> None:
        """Write the rejects and raise ShortfallError if too many pictures were rejected."""
        over = exceeds_budget(content.unusable, content.listed, self.config.max_reject_rate)
        if not over and len(content.index):
            return

        table = put_table(self.store, "rejects", content.rejects)
        limit = self.config.max_reject_rate
        reason = f", over --max-reject-rate {limit:g}" if over else ": no sample would be left"
        raise ShortfallError(
            f"{content.unusable} of {content.listed} pictures were rejected{reason}; no version "
            f"was published. Their reasons: {self.store.uri(table.path)}"
        )

    def _summary(
        self, manifest: Manifest, content: Content, plan: pa.Table, current: Parent
    ) -> IngestSummary:
        summary = _summary_of(manifest, self.dataset)
        changes = changes_between(current.index, plan, content.index)
        for name, count in asdict(changes).items():
            setattr(summary, name, count)

        parent = current.manifest
        if parent:
            summary.new_classes = sorted(set(manifest.classes) - set(parent.classes))
            summary.vanished_classes = sorted(set(parent.classes) - set(manifest.classes))
            summary.notes += class_notes(summary.new_classes, summary.vanished_classes)
            if manifest.lineage == manifest.version:
                summary.notes.append(
                    f"version {manifest.version} reads every picture again: other preprocessing"
                )
        summary.notes += repeat_notes(content.repeats)
        summary.notes += few_notes(content.index.column("label"), content.index.column("split"))

        accounted = summary.added + summary.changed + summary.unchanged + summary.rejects
        assert summary.listed == accounted, "every listed picture is counted once"
        return summary


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


def _has_same_content(manifest: Manifest, other: Manifest) -> bool:
    return (manifest.objects, manifest.source) == (
        other.objects,
        other.source,
    ) and _is_same_recipe(manifest.recipe, other.recipe)


def _is_same_recipe(recipe: dict[str, Any], other: dict[str, Any]) -> bool:
    """Compare all but the endings: what they list is part of the fingerprint of the source."""
    return {**recipe, "extensions": None} == {**other, "extensions": None}
