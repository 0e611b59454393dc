"""The labelling driver: list the source, run units, publish one manifest. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.base import fingerprint
from afinar.config.formats import extensions_identity
from afinar.config.label import LabelConfig
from afinar.errors import ShortfallError
from afinar.labelling.run_report import (
    RunReport,
    RunStats,
    find_baseline,
    read_stats,
    update_source_stats,
)
from afinar.labelling.source import open_source
from afinar.labelling.stats import LabelStats
from afinar.labelling.tasks import (
    UNIT_PICTURES,
    LabelSpec,
    preprocessing_for,
)
from afinar.models.registry.history import require_usable
from afinar.models.registry.versions import find_model
from afinar.pictures.profiles import require_colour_management
from afinar.pictures.rejects import exceeds_budget
from afinar.predictions.columns import optional_columns, partition_name
from afinar.predictions.current import PublishedRows, read_published_rows
from afinar.predictions.exports import Exports
from afinar.predictions.gc import delete_superseded
from afinar.predictions.manifest import (
    FORGET_PLAN,
    Part,
    Partition,
    publish_manifest,
    put_parts,
    read_manifest,
)
from afinar.predictions.review_queue import PageRenderer
from afinar.predictions.schema import SCHEMAS, object_folder
from afinar.storage.contents import require_target_for
from afinar.storage.markers import read_markers
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.versions import new_owner
from afinar.units.cut import count_pending, is_up_to_date, iter_units, plan_units, tapered_sizes
from afinar.units.executor import Executor
from afinar.units.plans import FOLDER as PLANS
from afinar.units.plans import Plan, delete_plan, is_stored, left_out_of, with_left_out
from afinar.units.results import UnitResult
from afinar.units.run import (
    IncrementalJob,
    Planned,
    Published,
    VersionConflictError,
    run_incremental,
)
from afinar.units.tasks import UnitTask, retry_policy

_PUBLISH_ATTEMPTS: Final = 20  # each on top of one more manifest of a concurrent writer


@dataclass(kw_only=True)
class LabelSummary:
    """Counts of a labelling: listed = labelled + rejected + skipped. This run read `read`."""

    predictions: str
    partition: str
    model: str
    listed: int
    labelled: int
    rejected: int
    skipped: int
    rejects_by_reason: dict[str, int]
    labels: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)
    read: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    units_run: int = 0
    single: str = ""
    review: str = ""
    abstained: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    confidence: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    report: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LabelOutcome:
    """Outcome of a labelling.

    `report` holds the statistics of what this run published, None if it published nothing.
    `shortfall` is a message if too many pictures were rejected; the others are labelled all the
    same.
    """

    summary: LabelSummary
    source: str
    partition: str
    report: RunReport | None
    shortfall: str | None = None


def run_labelling(
    config: LabelConfig, executor: Executor, render_page: PageRenderer | None = None
) -> LabelOutcome:
    """Label what the model has not labelled yet, publish it, and write the requested exports.

    `render_page` is called with the review queue when one is written. Raises RequestError for a
    source, a model or a target that cannot serve.
    """
    job = LabelJob(config, executor)
    result = run_incremental(job)
    summary, totals = result.summary, result.totals
    summary.units_run, summary.read = totals.units, totals.pictures
    summary.stages, summary.seconds = totals.rounded_phases(), result.seconds
    summary.images_per_second = result.pictures_per_second
    summary.left_out = result.left_out
    summary.notes += result.notes

    report = job.report or RunReport()
    drift = report.drift()
    summary.confidence, summary.drift = report.confidence(), asdict(drift)
    summary.notes += drift.sentences if drift.drifted else []

    exports = Exports(
        store=job.store,
        partition=job.partition,
        config=config,
        classes=job.version.classes,
        render_page=render_page,
    ).write()
    summary.single, summary.review = exports.single, exports.review
    summary.abstained = exports.abstained
    summary.notes += exports.notes
    return LabelOutcome(
        summary, job.source.uri, job.partition, job.report, _shortfall(job, summary)
    )


def _make_labeller(spec: LabelSpec) -> Callable[[UnitTask], UnitResult]:
    """Make the unit function in a worker process; torch is imported there, not in the driver."""
    from afinar.labelling.worker import make_labeller

    return make_labeller(spec)


def _shortfall(job: LabelJob, summary: LabelSummary) -> str | None:
    limit = job.config.max_reject_rate
    if not exceeds_budget(summary.rejected, summary.listed, limit):
        return None
    return (
        f"{summary.rejected} of {summary.listed} pictures were rejected, over --max-reject-rate "
        f"{limit:g}; the others are labelled, the reasons are in "
        f"{job.store.uri(object_folder('rejects', job.partition))}"
    )


class LabelJob(IncrementalJob[PublishedRows, LabelSummary]):
    """One labelling into one prediction folder, as the incremental runner needs it."""

    name: ClassVar[str] = "label"

    def __init__(self, config: LabelConfig, executor: Executor) -> None:
        require_colour_management()
        self.config, self.executor = config, executor
        self.out = normalize_uri(config.predictions)
        self.store = open_store(self.out)
        models, self.version = find_model(config.model)
        require_usable(models, self.version.version)
        self.model = f"{models.root}@{self.version.id}"
        # The partition's name contains everything that changes a row.
        self.partition = partition_name(self.version.id, config)
        require_target_for(self.store, "predictions", normalize_uri(config.source))
        self.source = open_source(config, self.version.stored_view)
        extensions = extensions_identity(config.extensions)
        self.identity = fingerprint([self.source.uri, self.partition, extensions])[:8]
        self.owner = new_owner()
        self.report: RunReport | None = None  # statistics of what this run has published

    def before_run(self) -> None:
        """Delete superseded parts that a run left when it was killed after it had published."""
        self._delete_superseded()

    def open_current(self) -> PublishedRows:
        return read_published_rows(self.store, self.partition)

    def plan_name(self, current: PublishedRows) -> str:
        del current
        return f"plans/{self.identity}.parquet"

    def can_resume(self, plan: Plan, current: PublishedRows) -> bool:
        del current
        return self.source.can_read(plan.table)

    def make_plan(self, current: PublishedRows) -> Planned:
        annotated = self.source.listing()
        listing = annotated.listing
        up_to_date = is_up_to_date(listing, current.known(self.config.retry_rejects))
        identity = f"{self.model}:{self.partition}:{current.manifest.version + 1}"
        table = plan_units(listing, up_to_date, identity, partial(tapered_sizes, UNIT_PICTURES))
        return Planned(with_left_out(table, annotated.left_out), annotated.notes)

    def check_lease(self, current: PublishedRows) -> None:
        """Raise ShortfallError if `forget` is erasing pictures: its plan is a lease."""
        del current
        if any(info.name == FORGET_PLAN for info in self.store.walk(PLANS)):
            raise ShortfallError(
                f"pictures are being erased from {self.out}: run the command again when that is "
                "done"
            )

    def is_current(self, table: pa.Table, current: PublishedRows) -> bool:
        del current
        return bool(table.column("unit").null_count == len(table))

    def run_units(
        self, table: pa.Table, done: set[str], current: PublishedRows
    ) -> Iterator[UnitResult]:
        tasks = (
            UnitTask(unit, entries) for unit, entries in iter_units(table, self.source.root, done)
        )
        preprocessing = preprocessing_for(self.source, self.version.stored_view)
        policy = retry_policy(self.config.unit_timeout_s, preprocessing, uses_gpus=True)
        # Hashes that were erased on request travel to every worker, which rejects these pictures.
        spec = self.spec(count_pending(table, done), current.manifest.forgotten)
        make_work = partial(_make_labeller, spec)

        return self.executor.run(make_work, tasks, policy)

    def spec(self, pictures: int, forgotten: Sequence[str] = ()) -> LabelSpec:
        """Return what all workers of a job over so many pictures need to know."""
        return LabelSpec(
            source=self.source,
            predictions=self.out,
            partition=self.partition,
            model=self.model,
            top_k=self.config.top_k,
            batch_size=self.config.batch_size,
            precision=self.config.precision,
            pictures=pictures,
            optional_columns=optional_columns(self.config),
            forgotten=frozenset(forgotten),
        )

    def is_overtaken(self, plan: Plan | None, current: PublishedRows) -> bool:
        if plan is None:
            return read_manifest(self.store).version != current.manifest.version
        return not is_stored(self.store, plan)

    def publish(self, plan: Plan, current: PublishedRows) -> Published[LabelSummary]:
        """Publish the plan's predictions on top of whatever is current by now.

        Raises VersionConflictError if a concurrent run of the same command has published this plan:
        its predictions may be superseded already.
        """
        markers = read_markers(self.store, plan.units, known=SCHEMAS)
        new = [Part(kind, ref) for marker in markers for kind, ref in marker.objects.items()]
        stats = read_stats(self.store, new)
        pictures = plan.table.filter(pc.is_valid(plan.table.column("unit"))).column("uri")

        for _ in range(_PUBLISH_ATTEMPTS):
            # The plan is checked after the rows are read: if a concurrent run publishes it later,
            # publishing on top of these rows fails.
            current = self.open_current()
            if not is_stored(self.store, plan):
                raise VersionConflictError("another run of the same command has published this")
            replaced = RunStats()
            kept = current.parts_without(
                self.store, pictures, plan.units[0], replaced.add_predictions
            )
            summary = self._summary(plan.table, current, stats)
            report = self._extended_report(current, stats)
            partition = self._partition(
                current, kept + new, summary, report, replaced.labels, stats.labels
            )
            manifest = current.manifest.successor(self.partition, partition)
            if publish_manifest(self.store, manifest, self.owner):
                self.report = report
                return Published(summary)
        raise VersionConflictError(
            f"{_PUBLISH_ATTEMPTS} other labellings of {self.out} published first"
        )

    def after_publish(self, plan: Plan) -> None:
        delete_plan(self.store, plan)
        self._delete_superseded()

    def unchanged(self, table: pa.Table, current: PublishedRows) -> LabelSummary:
        summary = self._summary(table, current, RunStats())
        summary.notes.append(
            f"nothing to do: {self.version.id} has labelled every picture of this source"
        )
        return summary

    def _delete_superseded(self) -> None:
        """Delete parts that no manifest names and no stored plan writes.

        A reader of the folder's files would see their rows twice.
        """
        folders = [object_folder(kind, self.partition) for kind in SCHEMAS]
        delete_superseded(self.store, folders)

    def _extended_report(self, current: PublishedRows, stats: RunStats) -> RunReport:
        """Return this run's report with one more publication; its baseline stays the first one."""
        if self.report is None:
            baseline = find_baseline(current.manifest, self.partition, self.source.uri)
            return RunReport(stats, baseline)
        return RunReport(self.report.stats.plus(stats), self.report.baseline)

    def _partition(
        self,
        current: PublishedRows,
        parts: list[Part],
        summary: LabelSummary,
        report: RunReport,
        removed: LabelStats,
        added: LabelStats,
    ) -> Partition:
        parts = sorted(parts, key=lambda part: part.ref.path)
        version = current.manifest.version + 1
        sources = current.partition.sources if current.partition else []
        return Partition(
            model=self.model,
            source=self.source.uri,
            sources=sorted({self.source.uri, *sources}),
            objects=put_parts(self.store, parts),
            rows=sum(part.ref.rows for part in parts if part.kind == "part"),
            rejects=sum(part.ref.rows for part in parts if part.kind == "rejects"),
            last_run={
                "listed": summary.listed,
                "labelled": summary.labelled,
                "rejected": summary.rejected,
            },
            accounts=update_source_stats(
                current.partition, self.source.uri, version, report.stats.labels, removed, added
            ),
            left_out=summary.left_out,
            # The order of the column `scores`.
            classes=self.version.classes if self.config.scores else None,
        )

    def _summary(self, plan: pa.Table, current: PublishedRows, stats: RunStats) -> LabelSummary:
        untouched = plan.filter(pc.is_null(plan.column("unit"))).column("uri")
        old_rejects = current.count_rejects(untouched)
        reasons = dict(sorted((Counter(stats.reasons) + Counter(old_rejects)).items()))
        labels = stats.labels.labels

        summary = LabelSummary(
            predictions=self.out,
            partition=self.partition,
            model=self.model,
            listed=len(plan),
            labelled=sum(labels.values()),
            rejected=sum(reasons.values()),
            skipped=len(untouched) - sum(old_rejects.values()),
            rejects_by_reason=reasons,
            labels=dict(sorted(labels.items())),
            left_out=left_out_of(plan),
        )
        accounted = summary.labelled + summary.rejected + summary.skipped
        assert summary.listed == accounted, "every listed picture is counted once"
        return summary
