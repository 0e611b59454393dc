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

from afinar.config.jobs import LabelConfig, fingerprint
from afinar.errors import NotFoundError, ShortfallError
from afinar.labelling.run_report import (
    Account,
    Tally,
    find_baseline,
    read_tally,
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
from afinar.predictions.columns import optional_columns, partition_name
from afinar.predictions.current import PublishedRows, read_published_rows
from afinar.predictions.exports import Exports
from afinar.predictions.gc import sweep
from afinar.predictions.manifest import (
    FOLDER,
    FORMAT,
    SCHEMAS,
    Part,
    object_folder,
    put_parts,
)
from afinar.predictions.review_queue import PageRenderer
from afinar.storage.commit import (
    Record,
    committed_units,
    new_owner,
    probe_conditional_put,
    publish,
    read_markers,
)
from afinar.storage.open import normalize_uri, open_store
from afinar.units.executor import Executor, RetryPolicy
from afinar.units.plan import (
    count_pending,
    interrupted_plan,
    is_stored,
    is_up_to_date,
    iter_units,
    plan_units,
    retire_plan,
    store_plan,
    tapered_sizes,
    unit_names,
)
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
        self.account: Account | None = None  # of what this run published
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
            plan = interrupted_plan(self.store, name)
            if plan is not None and not self.source.still_has(plan):
                logger.info("it names what is gone from its source; planning anew")
                retire_plan(self.store, name, plan)
                plan = None
            resumed = plan is not None
            if plan is None:
                plan = self._plan(name, state)
            if plan.column("unit").null_count == len(plan):
                summary = summary or self._nothing(plan, state)
                break
            run, pictures = self._label(plan)
            units, read = units + run, read + pictures
            published = self._publish(plan, name)
            if published is None:
                logger.info(
                    "another run of the same command has published this; looking at the source again"
                )
                continue
            summary = published
            retire_plan(self.store, name, plan)
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
            gallery=self.gallery,
        ).make()  # fmt: skip
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
        identity = f"{self.model}:{self.partition}:{state.number + 1}"
        return plan_units(
            listing, is_up_to_date(listing, known), identity, partial(tapered_sizes, UNIT_PICTURES)
        )

    def _plan(self, name: str, state: PublishedRows) -> pa.Table:
        plan = self.planned(state)
        if plan.column("unit").null_count < len(plan):
            probe_conditional_put(self.store)
            return store_plan(self.store, name, plan)
        return plan

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

    def _publish(self, plan: pa.Table, name: str) -> LabelSummary | None:
        """Publish the plan's answers on top of whatever is current, a rival's manifest included.

        None when a twin has published and retired this plan: its answers may be superseded already.
        """
        units = unit_names(plan)
        try:
            markers = read_markers(self.store, units)
            new = [
                Part(kind, marker.unit, ref)
                for marker in markers
                for kind, ref in marker.objects.items()
            ]
            tally = read_tally(self.store, new)
        except NotFoundError:
            if is_stored(self.store, name, plan):
                raise
            return None
        fresh = plan.filter(pc.is_valid(plan.column("unit"))).column("uri")
        for _ in range(_ATTEMPTS):
            state = read_published_rows(self.store, self.partition)
            if not is_stored(
                self.store, name, plan
            ):  # looked at after the state: what comes later makes ours lose
                return None
            gone = Tally()
            kept = state.parts_without(self.store, fresh, units[0], gone.add_answers)
            summary = self._summary(plan, state, tally.answers.labels, tally.reasons)
            account = self._account(state, tally)
            accounts = update_source_stats(
                self._entry(state),
                self.source.uri,
                state.number + 1,
                account.tally.answers,
                gone.answers,
                tally.answers,
            )
            if self._publish_manifest(
                state, sorted(kept + new, key=lambda part: part.ref.path), summary, accounts
            ):
                self.account = account
                return summary
        raise ShortfallError(
            f"{_ATTEMPTS} other labellings of {self.out} published first: run the same command again"
        )

    def _entry(self, state: PublishedRows) -> Record | None:
        entry: Record | None = (state.record or {}).get("partitions", {}).get(self.partition)
        return entry

    def _account(self, state: PublishedRows, tally: Tally) -> Account:
        """This run's account with one publication more; it is compared with what it first found."""
        if self.account is None:
            return Account(tally, find_baseline(state.record, self.partition, self.source.uri))
        return Account(self.account.tally.plus(tally), self.account.before)

    def _account_for(self, summary: LabelSummary) -> None:
        self.summary = summary
        account = self.account or Account()
        drift = account.drift()
        summary.confidence, summary.drift = account.confidence(), asdict(drift)
        summary.notes += drift.sentences if drift.drifted else []

    def _publish_manifest(
        self, state: PublishedRows, parts: list[Part], summary: LabelSummary, accounts: Record
    ) -> bool:
        entry = {
            "model": self.model,
            "source": self.source.uri,
            "sources": sorted({self.source.uri, *_sources(state.record, self.partition)}),
            "objects": put_parts(self.store, parts).as_dict(),
            "rows": sum(part.ref.rows for part in parts if part.kind == "part"),
            "rejects": sum(part.ref.rows for part in parts if part.kind == "rejects"),
            "last_run": {
                "listed": summary.listed,
                "labelled": summary.labelled,
                "rejected": summary.rejected,
            },
            "accounts": accounts,
        }
        if self.config.scores:
            entry["classes"] = self.version.classes  # the order of `scores`
        partitions = {**(state.record or {}).get("partitions", {}), self.partition: entry}
        record = {
            "format": FORMAT,
            "version": state.number + 1,
            "current": self.partition,
            "partitions": partitions,
        }
        return publish(self.store, FOLDER, state.number + 1, record, self.owner)

    def _sweep(self) -> None:
        """Remove what no manifest names and no stored plan is still writing: a plain reader would see it twice."""
        sweep(self.store, [object_folder(kind, self.partition) for kind in SCHEMAS])

    def _summary(
        self, plan: pa.Table, state: PublishedRows, labels: dict[str, int], reasons: dict[str, int]
    ) -> LabelSummary:
        untouched = plan.filter(pc.is_null(plan.column("unit"))).column("uri")
        standing = state.rejects_among(untouched)
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
        if summary.rejected > self.config.max_reject_rate * summary.listed:
            raise ShortfallError(
                f"{summary.rejected} of {summary.listed} pictures were rejected, over --max-reject-rate "
                f"{self.config.max_reject_rate:g}; the others are labelled, the reasons lie in "
                f"{self.store.uri(f'rejects/model={self.partition}')}"
            )


def _sources(record: Record | None, partition: str) -> list[str]:
    """Where the pictures of a partition came from before."""
    entry = ((record or {}).get("partitions") or {}).get(partition) or {}
    return entry.get("sources") or [entry["source"]] if entry else []
