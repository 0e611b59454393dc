"""The incremental runner under every job that works in units: plan, resume, run, publish.

1. Open the current version and load the plan that an interrupted run left, or make and store a new
   one.
2. Run the plan's units that no earlier run committed.
3. Publish a version on top of the current one.
4. If the plan was resumed, the source may have changed since it was made: begin again at 1.

A kind of job supplies how to list its source and cut it into units, how to run units, and how to
build and publish a version (`IncrementalJob`). Interruption at any point leaves a stored plan and
committed units, which the next run of the same command takes up.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar

import pyarrow as pa

from afinar.errors import NotFoundError, ShortfallError
from afinar.storage.markers import committed_units
from afinar.storage.store import Store
from afinar.storage.versions import probe_conditional_put
from afinar.units.cut import count_pending
from afinar.units.plans import Plan, delete_plan, left_out_of, load_plan, store_plan
from afinar.units.progress import ProgressReporter
from afinar.units.results import RunTotals, UnitResult

logger = logging.getLogger(__name__)

MAX_ROUNDS: Final = 20  # rounds that begin again because a concurrent writer published first

Version = TypeVar("Version")
Summary = TypeVar("Summary")


@dataclass(frozen=True)
class Planned:
    """A listing cut into units (PLAN), and notes on the listing for the user."""

    table: pa.Table
    notes: list[str]


@dataclass(frozen=True)
class Published(Generic[Summary]):
    """Summary of a version; `is_new` is False if the current version already had this content."""

    summary: Summary
    is_new: bool = True


class VersionConflictError(ShortfallError):
    """A concurrent writer published first: the job looks at the current version again."""


@dataclass(frozen=True)
class RunResult(Generic[Summary]):
    """Outcome of a run: the summary of its last version, sums over its units, wall time.

    `published` is False if no new version was published; `notes` and `left_out` are those of the
    last listing.
    """

    summary: Summary
    totals: RunTotals
    notes: list[str]
    left_out: dict[str, int]
    seconds: float
    published: bool

    @property
    def pictures_per_second(self) -> float:
        """Pictures of the run's units over its wall time."""
        return round(self.totals.pictures / max(self.seconds, 1e-3), 1)


class IncrementalJob(ABC, Generic[Version, Summary]):
    """One kind of job. `Version` is what is published now, `Summary` what the job reports."""

    name: ClassVar[str]
    store: Store

    @abstractmethod
    def open_current(self) -> Version:
        """Return what is published now. Raises RequestError if this job may not build on it."""

    @abstractmethod
    def plan_name(self, current: Version) -> str:
        """Return the name under which the plan of the coming version is stored."""

    @abstractmethod
    def make_plan(self, current: Version) -> Planned:
        """List the source and cut it into units; writes nothing."""

    @abstractmethod
    def is_current(self, table: pa.Table, current: Version) -> bool:
        """Return True if the current version needs no successor for this new plan (PLAN)."""

    @abstractmethod
    def run_units(self, table: pa.Table, done: set[str], current: Version) -> Iterator[UnitResult]:
        """Run the plan's units that are not in `done`, through the job's executor."""

    @abstractmethod
    def publish(self, plan: Plan, current: Version) -> Published[Summary]:
        """Publish a version from the committed units.

        Raises VersionConflictError if a concurrent writer was first and the plan has to be looked
        at again, ShortfallError if the result is not good enough to publish.
        """

    @abstractmethod
    def unchanged(self, table: pa.Table, current: Version) -> Summary:
        """Return the summary of a run that found nothing to do."""

    def before_run(self) -> None:
        """Prepare the target, once, after it was checked."""

    def can_resume(self, plan: Plan, current: Version) -> bool:
        """Return False if an interrupted plan can no longer be carried out; it is deleted then."""
        del plan, current
        return True

    def committed(self) -> set[str]:
        """Return the names of the units that need not run, of any plan."""
        return committed_units(self.store)

    def is_overtaken(self, plan: Plan | None, current: Version) -> bool:
        """Return True if a concurrent writer published and may have deleted objects of `current`.

        `plan` is None if the job was still planning.
        """
        del plan
        return self.open_current() != current

    def check_lease(self, current: Version) -> None:
        """Raise ShortfallError if another job forbids this one; its own plan is stored by now."""

    def after_publish(self, plan: Plan) -> None:
        """Delete what the published version no longer needs."""


def run_incremental(job: IncrementalJob[Version, Summary]) -> RunResult[Summary]:
    """Bring a job's target up to date with its source.

    Raises RequestError for a target that cannot be written, ShortfallError if the result is not
    good enough to publish or `MAX_ROUNDS` concurrent writers published first.
    """
    started = time.monotonic()
    job.store.require_target()
    job.before_run()
    totals, notes, left_out = RunTotals(), list[str](), dict[str, int]()
    published: Published[Summary] | None = None
    is_new = False
    for _ in range(MAX_ROUNDS):
        current = job.open_current()
        plan: Plan | None = None
        try:
            plan = _load(job, current)
            if plan is None:
                planned = job.make_plan(current)
                notes, left_out = planned.notes, left_out_of(planned.table)
                if job.is_current(planned.table, current):
                    summary = (
                        published.summary if published else job.unchanged(planned.table, current)
                    )
                    return RunResult(summary, totals, notes, left_out, _since(started), is_new)
                plan = _store(job, planned.table, current)
            _run_pending(job, plan, current, totals)
            published = job.publish(plan, current)
        except VersionConflictError as conflict:
            logger.info(f"{conflict}; looking at the source again")
            continue
        except NotFoundError:
            if not job.is_overtaken(plan, current):
                raise
            logger.info(
                "another job published first and deleted old objects; building on its version"
            )
            continue
        except ShortfallError as shortfall:
            if plan is None or not plan.resumed:
                raise  # the plan stays: with a larger budget it is published as it is
            logger.info(f"the plan of the interrupted run is deleted: {shortfall}")
            delete_plan(job.store, plan)
            continue

        job.after_publish(plan)
        is_new = is_new or published.is_new
        if not plan.resumed:
            return RunResult(published.summary, totals, notes, left_out, _since(started), is_new)
        logger.info("the interrupted run is complete; looking at the source again")
    raise ShortfallError(
        f"{MAX_ROUNDS} other jobs published to {job.store.root} first: run the command again"
    )


def _load(job: IncrementalJob[Version, Summary], current: Version) -> Plan | None:
    """Return the plan of an interrupted run, if there is one that can still be carried out."""
    plan = load_plan(job.store, job.plan_name(current))
    if plan is None:
        return None
    if job.can_resume(plan, current):
        job.check_lease(current)
        return plan

    logger.info("the source no longer has what the plan names; planning again")
    delete_plan(job.store, plan)
    return None


def _store(job: IncrementalJob[Version, Summary], table: pa.Table, current: Version) -> Plan:
    probe_conditional_put(job.store)
    plan = store_plan(job.store, job.plan_name(current), table)
    job.check_lease(current)
    return plan


def _run_pending(
    job: IncrementalJob[Version, Summary], plan: Plan, current: Version, totals: RunTotals
) -> None:
    """Run the units that no earlier run committed."""
    units = plan.units
    done = job.committed() & set(units) if units else set()
    if done:
        logger.info(f"{len(done)} of {len(units)} units are already committed")
    if len(done) == len(units):
        return

    pictures = count_pending(plan.table, done)
    with ProgressReporter(job.name, pictures) as progress:
        for result in job.run_units(plan.table, done, current):
            progress.add(result.pictures, result.rejects, result.phases)
            totals.add(result)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
