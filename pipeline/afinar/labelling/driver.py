"""The labelling job: listing → plan → parts → one new manifest. Its driver needs no torch.

An interrupted run left its plan behind; the same command resumes it, publishes it, and looks at the
source again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.base import fingerprint
from afinar.config.label import LabelConfig
from afinar.errors import NotFoundError, ShortfallError
from afinar.labelling.run_report import (
    RunReport,
    RunStats,
    find_baseline,
    read_stats,
    update_source_stats,
)
from afinar.labelling.source import open_source
from afinar.labelling.tasks import (
    UNIT_PICTURES,
    LabelSpec,
    LabelTask,
    deadline_s,
    make_labeller,
    preprocessing_for,
)
from afinar.models.registry.versions import find_model
from afinar.pictures.rejects import exceeds_budget
from afinar.predictions.columns import optional_columns, partition_name
from afinar.predictions.current import PublishedRows, read_published_rows
from afinar.predictions.exports import Exports
from afinar.predictions.gc import delete_superseded
from afinar.predictions.manifest import Part, Partition, publish_manifest, put_parts
from afinar.predictions.review_queue import PageRenderer
from afinar.predictions.schema import SCHEMAS, object_folder
from afinar.storage.markers import committed_units, read_markers
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.versions import Record, new_owner, probe_conditional_put
from afinar.units.cut import (
    count_pending,
    is_up_to_date,
    iter_units,
    plan_units,
    tapered_sizes,
    unit_names,
)
from afinar.units.executor import Executor, RetryPolicy
from afinar.units.plans import Plan, delete_plan, is_stored, load_plan, store_plan
from afinar.units.progress import ProgressReporter

logger = logging.getLogger(__name__)

_ATTEMPTS = 20  # at publishing on top of rivals


@dataclass(kw_only=True)
class LabelSummary:
    """What a labelling did. listed = labelled + rejected + skipped; `read` of them were read by this very run."""

    predictions: str
    model: str
    listed: int
    labelled: int
    rejected: int
    skipped: int
    rejects_by_reason: dict[str, int]
    labels: dict[str, int]
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


class Labelling:
    """One labelling into one prediction folder."""

    def __init__(
        self, config: LabelConfig, executor: Executor, gallery: PageRenderer | None = None
    ) -> None:
        self.config, self.executor, self.gallery = config, executor, gallery
        self.out = normalize_uri(config.predictions)
        self.store = open_store(self.out)
        models, self.version = find_model(config.model)
        self.model = f"{models.root}@{self.version.id}"
        # Everything that changes an answer is in the partition's name.
        self.partition = partition_name(self.version.id, config)
        self.source = open_source(config, self.version.stored_view)
        self.identity = fingerprint([self.source.uri, self.partition, config.extensions])[:8]
        self.notes: list[str] = []
        self.owner = new_owner()
        self.report: RunReport | None = None  # of what this run published
        self.summary: LabelSummary | None = None  # also of a run that ends over its reject budget
        self._stages: dict[str, float] = {}

    def run(self) -> LabelSummary:
        """Label what this model has not labelled yet."""
        started = time.monotonic()
        self.store.require_target()
        self._sweep()  # what a run that was killed after publishing could not finish
        read = units = 0
        summary: LabelSummary | None = None
        name = f"plans/{self.identity}.parquet"
        while True:
            state = read_published_rows(self.store, self.partition)
            plan = load_plan(self.store, name)
            if plan is not None and not self.source.still_has(plan.table):
                logger.info("it names what is gone from its source; planning anew")
                delete_plan(self.store, plan)
                plan = None
            resumed = plan is not None
            if plan is None:
                table = self.planned(state)
                if table.column("unit").null_count == len(table):
                    summary = summary or self._nothing(table, state)
                    break
                probe_conditional_put(self.store)
                plan = store_plan(self.store, name, table)
            run, pictures = self._label(plan.table)
            units, read = units + run, read + pictures
            published = self._publish(plan)
            if published is None:
                logger.info(
                    "another run of the same command has published this; looking at the source again"
                )
                continue
            summary = published
            delete_plan(self.store, plan)
            self._sweep()
            if not resumed:
                break
            logger.info("the interrupted run is complete; looking at the source again")
        summary.notes += self.notes
        summary.units_run, summary.read = units, read
        summary.seconds = round(time.monotonic() - started, 3)
        summary.images_per_second = round(read / summary.seconds, 1)
        summary.stages = {name: round(seconds, 2) for name, seconds in self._stages.items()}
        self._account_for(summary)
        self._make_on_request(summary)
        self._check_budget(summary)
        return summary

    def _make_on_request(self, summary: LabelSummary) -> None:
        made = Exports(
            store=self.store, partition=self.partition, config=self.config, classes=self.version.classes,
            render_page=self.gallery,
        ).write()  # fmt: skip
        summary.single, summary.review, summary.abstained = made.single, made.review, made.abstained
        summary.notes += made.notes

    def _nothing(self, plan: pa.Table, state: PublishedRows) -> LabelSummary:
        summary = self._summary(plan, state, {}, {})
        summary.notes.append(
            f"nothing to do: {self.version.id} has labelled every picture of this source"
        )
        return summary

    def planned(self, state: PublishedRows) -> pa.Table:
        """The source as it is now, and what of it is to be labelled beside what stands. Writes nothing."""
        listing, self.notes = self.source.listing()
        known = state.known(self.config.retry_rejects)
        identity = f"{self.model}:{self.partition}:{state.manifest.version + 1}"
        return plan_units(
            listing, is_up_to_date(listing, known), identity, partial(tapered_sizes, UNIT_PICTURES)
        )

    def _label(self, plan: pa.Table) -> tuple[int, int]:
        """Run the plan's units that no earlier run committed; how many those were, and their pictures."""
        units, done = unit_names(plan), committed_units(self.store)
        left = sum(unit not in done for unit in units)
        pictures = count_pending(plan, done)
        if left < len(units):
            logger.info(f"{len(units) - left} of {len(units)} units are already committed")
        if not left:
            return 0, 0
        tasks = (
            LabelTask(unit, entries) for unit, entries in iter_units(plan, self.source.root, done)
        )
        preprocessing = preprocessing_for(self.source, self.version.stored_view)
        care = RetryPolicy(
            deadline_s=partial(deadline_s, self.config.unit_timeout_s),
            next_attempt=LabelTask.next_attempt,
            preprocessing=preprocessing,
        )
        with ProgressReporter("label", pictures) as meter:
            for result in self.executor.run_with_state(
                partial(make_labeller, self.spec(pictures)), tasks, care
            ):
                meter.add(result.pictures, result.rejects, result.stages)
                for name, seconds in result.stages.items():
                    self._stages[name] = self._stages.get(name, 0.0) + seconds
        return left, pictures

    def spec(self, pictures: int) -> LabelSpec:
        """What a worker is told of a job of so many pictures."""
        return LabelSpec(
            source=self.source, predictions=self.out, partition=self.partition, model=self.model,
            top_k=self.config.top_k, batch_size=self.config.batch_size,
            precision=self.config.precision, pictures=pictures, extras=optional_columns(self.config),
        )  # fmt: skip

    def _publish(self, plan: Plan) -> LabelSummary | None:
        """Publish the plan's answers on top of whatever is current, a rival's manifest included.

        None when a twin has published and retired this plan: its answers may be superseded already.
        """
        units = plan.units
        try:
            markers = read_markers(self.store, units)
            new = [Part(kind, ref) for marker in markers for kind, ref in marker.objects.items()]
            stats = read_stats(self.store, new)
        except NotFoundError:
            if is_stored(self.store, plan):
                raise
            return None
        fresh = plan.table.filter(pc.is_valid(plan.table.column("unit"))).column("uri")
        for _ in range(_ATTEMPTS):
            state = read_published_rows(self.store, self.partition)
            if not is_stored(self.store, plan):  # looked at after the state: what comes later makes ours lose
                return None
            gone = RunStats()
            kept = state.parts_without(self.store, fresh, units[0], gone.add_predictions)
            summary = self._summary(plan.table, state, stats.labels.labels, stats.reasons)
            report = self._report(state, stats)
            accounts = update_source_stats(
                state.partition,
                self.source.uri,
                state.manifest.version + 1,
                report.stats.labels,
                gone.labels,
                stats.labels,
            )
            if self._publish_manifest(
                state, sorted(kept + new, key=lambda part: part.ref.path), summary, accounts
            ):
                self.report = report
                return summary
        raise ShortfallError(
            f"{_ATTEMPTS} other labellings of {self.out} published first: run the same command again"
        )

    def _report(self, state: PublishedRows, stats: RunStats) -> RunReport:
        """Add a publication to this run's report. The baseline is what the run found at first."""
        if self.report is None:
            return RunReport(stats, find_baseline(state.manifest, self.partition, self.source.uri))
        return RunReport(self.report.stats.plus(stats), self.report.baseline)

    def _account_for(self, summary: LabelSummary) -> None:
        self.summary = summary
        report = self.report or RunReport()
        drift = report.drift()
        summary.confidence, summary.drift = report.confidence(), asdict(drift)
        summary.notes += drift.sentences if drift.drifted else []

    def _publish_manifest(
        self, state: PublishedRows, parts: list[Part], summary: LabelSummary, accounts: dict[str, Record]
    ) -> bool:
        partition = Partition(
            model=self.model,
            source=self.source.uri,
            sources=sorted(
                {self.source.uri, *(state.partition.sources if state.partition else ())}
            ),
            objects=put_parts(self.store, parts),
            rows=sum(part.ref.rows for part in parts if part.kind == "part"),
            rejects=sum(part.ref.rows for part in parts if part.kind == "rejects"),
            last_run={
                "listed": summary.listed,
                "labelled": summary.labelled,
                "rejected": summary.rejected,
            },
            accounts=accounts,
            classes=self.version.classes if self.config.scores else None,
        )
        manifest = state.manifest.successor(self.partition, partition)
        return publish_manifest(self.store, manifest, self.owner)

    def _sweep(self) -> None:
        """Remove what no manifest names and no stored plan is still writing: a plain reader would see it twice."""
        delete_superseded(self.store, [object_folder(kind, self.partition) for kind in SCHEMAS])

    def _summary(
        self, plan: pa.Table, state: PublishedRows, labels: dict[str, int], reasons: dict[str, int]
    ) -> LabelSummary:
        untouched = plan.filter(pc.is_null(plan.column("unit"))).column("uri")
        standing = state.count_rejects(untouched)
        reasons = dict(sorted((Counter(reasons) + Counter(standing)).items()))
        summary = LabelSummary(
            predictions=self.out,
            model=self.model,
            listed=len(plan),
            labelled=sum(labels.values()),
            rejected=sum(reasons.values()),
            skipped=len(untouched) - sum(standing.values()),
            rejects_by_reason=reasons,
            labels=dict(sorted(labels.items())),
        )
        assert summary.listed == summary.labelled + summary.rejected + summary.skipped
        return summary

    def _check_budget(self, summary: LabelSummary) -> None:
        if exceeds_budget(summary.rejected, summary.listed, self.config.max_reject_rate):
            raise ShortfallError(
                f"{summary.rejected} of {summary.listed} pictures were rejected, over --max-reject-rate "
                f"{self.config.max_reject_rate:g}; the others are labelled, the reasons lie in "
                f"{self.store.uri(f'rejects/model={self.partition}')}"
            )
