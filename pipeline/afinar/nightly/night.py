"""One night: ingest what changed, train a candidate, decide, promote, label, report.

Each step is recorded before the next one begins. A night that is killed is continued by the next
run, which skips the steps that have a record. Steps that publish are idempotent themselves: the
jobs resume, and the alias is moved by a put-if-absent record.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from afinar.config.base import ClusterJobConfig, as_dict
from afinar.config.nightly import NightlyConfig
from afinar.errors import AfinarError
from afinar.logs import escape_lines
from afinar.models.registry.aliases import champion_number, count_promotions, promote
from afinar.models.registry.versions import find_champion
from afinar.nightly.hooks import tell
from afinar.nightly.jobs import Jobs
from afinar.nightly.lock import Lease, LeasedExecutor, LeaseLostError, hold_lock
from afinar.nightly.pages import write_pages
from afinar.nightly.records import (
    Night,
    NightRecord,
    Outcome,
    begin_night,
    end_night,
    read_nights,
)
from afinar.nightly.steps import Record, Services, Steps
from afinar.storage.open import normalize_uri, open_store
from afinar.units.executor import Executor

logger = logging.getLogger(__name__)


def run_night(config: NightlyConfig, services: Services) -> NightRecord:
    """Run a night, or continue one that was killed, and return its record.

    A step that fails ends the night: its outcome is `failed`, and `exit_code` is that of the error.
    Raises LockHeldError if another night holds the lock, and LeaseLostError if it was taken over
    while this process was suspended.
    """
    store = open_store(normalize_uri(config.nights))
    with hold_lock(store, 60 * config.lease_minutes) as lease:
        night = begin_night(store, as_dict(config))
        if night.done:
            logger.info(f"night {night.name} goes on after: {', '.join(night.done)}")
        record = _NightRun(config, services, lease, night).run()
        write_pages(store, config.models, config.dataset)
    message = ("night", "outcome", "reasons", "champion", "candidate")
    tell(
        config.hooks,
        {name: getattr(record, name) for name in message}
        | {"report": store.uri(f"{record.night}/report.html")},
    )
    return record


class _NightRun:
    """One run of a night: the steps in their order, and their records."""

    def __init__(
        self, config: NightlyConfig, services: Services, lease: Lease, night: Night
    ) -> None:
        self.lease, self.night = lease, night
        self.models = open_store(normalize_uri(config.models))

        def executor(job: ClusterJobConfig) -> Executor:
            """Return an executor after whose units nothing is published if the lock is lost."""
            return LeasedExecutor(services.executor(job), lease)

        names = ("address", "workers", "unit_timeout_s", "log_format")
        options = {name: getattr(config, name) for name in names}
        self.steps = Steps(
            config,
            services,
            lease,
            night,
            earlier=read_nights(night.store),
            jobs=Jobs(options=options, executor=executor),
            alias_record=self._fence(),
        )

    def run(self) -> NightRecord:
        """Run all steps and record the outcome."""
        try:
            train, promote = self._run_steps()
        except LeaseLostError:
            raise  # another process goes on with this night: this one records nothing
        except Exception as error:  # noqa: BLE001  (the night has failed, whatever it was)
            if isinstance(error, AfinarError):
                logger.error(str(error))
                return self._end("failed", [str(error)], exit_code=error.exit_code)
            logger.error(escape_lines(traceback.format_exc()))
            return self._end("failed", [f"{type(error).__name__}: {error}"], exit_code=1)

        if train["candidate"] is None:
            return self._end("no change", [train["why"]])
        return self._end(promote["outcome"], promote["reasons"], train["candidate"])

    def _run_steps(self) -> tuple[Record, Record]:
        """Run all steps; return the records of `train` and `promote`."""
        steps = self.steps
        start = self._step("start", steps.start)
        ingest = self._step("ingest", steps.ingest)
        watched = self._step("watch", lambda: steps.watch(start, ingest))
        train = self._step("train", lambda: steps.train(start, ingest, watched))
        promote: Record = {}
        if train["candidate"] is not None:
            self._step("evaluate", lambda: steps.evaluate(start, train))
            rehearsal = self._step("rehearse", lambda: steps.rehearse(start, train))
            gate = self._step("gate", lambda: steps.gate(start, train, rehearsal))
            promote = self._step("promote", lambda: steps.promote(start, train, gate))
        self._step("label", steps.label)
        return train, promote

    def _fence(self) -> int:
        """Return the number of the champion's record that this night may follow.

        After a takeover it is a new record of the same champion. A late write of the former holder
        then finds its number taken.
        """
        record = count_promotions(self.models)
        champion = champion_number(self.models)
        if self.lease.takeover and champion is not None:
            why = "unchanged: the lock of a killed night was taken over"
            promote(self.models, champion, why, after=record)
            record += 1
        return record

    def _step(self, name: str, run: Callable[[], Record]) -> Record:
        """Return the record of a step; run it if it has none."""
        if name in self.night.done:
            return self.night.done[name]
        self.lease.require()
        logger.info(f"night {self.night.name}: {name}")
        started = time.monotonic()
        record = run()
        if name in self.night.done:  # recorded by itself, at the moment of its publication
            return self.night.done[name]
        self.lease.require()
        seconds = round(time.monotonic() - started, 2)
        return self.night.complete(name, {**record, "seconds": seconds})

    def _end(
        self,
        outcome: Outcome,
        reasons: list[str],
        candidate: int | None = None,
        exit_code: int = 0,
    ) -> NightRecord:
        self.lease.require()
        steps: dict[str, dict[str, Any]] = self.night.done
        if candidate is None:
            candidate = steps.get("train", {}).get("candidate")
        record = NightRecord(
            night=self.night.name,
            began=self.night.begin.began,
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            outcome=outcome,
            reasons=reasons,
            steps=steps,
            champion=find_champion(self.models),
            candidate=candidate,
            seconds=round(sum(step.get("seconds", 0.0) for step in steps.values()), 1),
            exit_code=exit_code,
        )
        end_night(self.night, record)
        return record
