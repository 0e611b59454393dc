"""One night: ingest what changed, train a candidate, decide, promote, label, report.

Each step is recorded before the next one begins. A night that is killed is continued by the next
run, which skips the steps that have a record. Steps that publish are idempotent themselves: the
jobs resume, and the alias is moved by a put-if-absent record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from afinar.config.base import JobConfig, as_dict, fingerprint
from afinar.config.ingest import IngestConfig
from afinar.config.nightly import NightlyConfig
from afinar.config.recipes import load_recipe
from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import AfinarError, RequestError, ShortfallError
from afinar.evaluation.comparison import read_run
from afinar.evaluation.gate import Verdict, decide
from afinar.ingestion.driver import run_ingest
from afinar.models.registry.aliases import champion_number, champion_record, promote_after
from afinar.models.registry.versions import ModelVersion, get_model
from afinar.nightly.archive import label_archive
from afinar.nightly.evidence import (
    Answers,
    Rehearsal,
    beats_largest_class,
    compare,
    gather_evidence,
    is_for_score,
    published_score,
)
from afinar.nightly.hooks import tell
from afinar.nightly.jobs import Jobs
from afinar.nightly.lock import Lease, LeasedExecutor, hold_lock
from afinar.nightly.records import (
    FrozenTest,
    GateDecision,
    Night,
    NightRecord,
    begin_night,
    count_decision,
    current_test,
    end_night,
    freeze_test,
    last_step,
    put_list,
    read_nights,
    read_test_ids,
)
from afinar.nightly.rehearsal import rehearse
from afinar.nightly.watch import held_uris, read_watched, watch
from afinar.storage.open import normalize_uri, open_store
from afinar.training.driver import TrainOutcome, run_training
from afinar.training.task import TrainTask
from afinar.units.executor import Executor

logger = logging.getLogger(__name__)

Record = dict[str, Any]
WritePage = Callable[[TrainOutcome], None]


@dataclass(frozen=True, kw_only=True)
class Services:
    """Services that run the jobs: an executor for a configuration, and the launcher of trainings.

    `write_training_page` is called when a version has been published.
    """

    executor: Callable[[JobConfig], Executor]
    launch: Callable[[TrainTask], None]
    write_training_page: WritePage = lambda _: None


def run_night(config: NightlyConfig, services: Services) -> NightRecord:
    """Run a night, or continue one that was killed, and return its record.

    Raises LockHeldError if another night holds the lock, RequestError for a request that cannot be
    carried out. Any other failure is recorded as the outcome `failed` and raised.
    """
    store = open_store(normalize_uri(config.nights))
    with hold_lock(store, 60 * config.lease_minutes) as lease:
        night = begin_night(store, as_dict(config))
        if night.done:
            logger.info(f"night {night.name} goes on after: {', '.join(night.done)}")
        return _NightRun(config, services, lease, night).run()


def renew_test(config: NightlyConfig) -> FrozenTest:
    """Draw a new frozen test set from the current dataset and return its record."""
    store = open_store(normalize_uri(config.nights))
    with hold_lock(store, 60 * config.lease_minutes):
        return freeze_test(store, _gate_ids(config.dataset), "renewed on request")


def _gate_ids(dataset: str) -> list[str]:
    """Return the ids of the labelled test samples that gates may use."""
    table = open_dataset(normalize_uri(dataset)).index.select(["sample_id", "split", "label"])
    return [
        row["sample_id"]
        for row in table.to_pylist()
        if row["split"] == "test" and row["label"] and not is_for_score(row["sample_id"])
    ]


class _NightRun:
    """One run of a night: the steps in their order, and what they share."""

    def __init__(
        self, config: NightlyConfig, services: Services, lease: Lease, night: Night
    ) -> None:
        self.config, self.services, self.lease, self.night = config, services, lease, night
        self.nights = night.store
        self.models = open_store(normalize_uri(config.models))
        self.earlier = read_nights(self.nights)
        self.started = time.monotonic()
        self.jobs = Jobs(options=_shared_options(config), executor=self._executor)
        self.alias = self._fence()

    def run(self) -> NightRecord:
        """Run all steps and record the outcome."""
        try:
            start = self._step("start", self._start)
            ingest = self._step("ingest", self._ingest)
            self._step("watch", lambda: self._watch(start, ingest))
            train = self._step("train", lambda: self._train(ingest))
            rehearsal = self._step("rehearse", lambda: self._rehearse(start, train))
            gate = self._step("gate", lambda: self._gate(start, train, rehearsal))
            promote = self._step("promote", lambda: self._promote(start, train, gate))
            self._step("label", self._label)
        except AfinarError as error:
            if not isinstance(error, RequestError):
                self._end("failed", [str(error)], None)
            raise

        if train["candidate"] is None:
            return self._end("no change", [train["why"]], None)
        return self._end(promote["outcome"], promote["reasons"], train["candidate"])

    def _fence(self) -> int:
        """Return the number of the champion's record that this night may follow.

        After a takeover it is a new record of the same champion. A late write of the former holder
        then finds its number taken.
        """
        record = champion_record(self.models)
        champion = champion_number(self.models)
        if self.lease.takeover and champion is not None:
            promote_after(self.models, record, champion, "unchanged: a killed night was taken over")
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
        return self.night.complete(
            name, {**record, "seconds": round(time.monotonic() - started, 2)}
        )

    def _start(self) -> Record:
        return {"champion": champion_number(self.models)}

    def _ingest(self) -> Record:
        config = IngestConfig(
            source=self.config.source,
            dataset=self.config.dataset,
            labels=self.config.labels,
            split=self.config.split,
            seed=self.config.seed,
            size=self.config.size,
            fit=self.config.fit,
            **self.jobs.options,
        )
        outcome = run_ingest(config, self._executor(config))
        return {"published": outcome.published, **asdict(outcome.summary)}

    def _watch(self, start: Record, ingest: Record) -> Record:
        """Compare tonight's labels and pictures with the champion's answers."""
        previous = last_step(self.earlier, "ingest")
        if start["champion"] is None or previous is None or not ingest["published"]:
            return {"new": 0, "counts": {}, "alarms": [], "held": None, "notes": []}
        return watch(
            self.night,
            self.earlier,
            dataset=self.config.dataset,
            versions=(previous["version"], ingest["version"]),
            champion=f"{self.models.root}@{start['champion']}",
            rules=self.config.watch,
            jobs=self.jobs,
        )

    def _train(self, ingest: Record) -> Record:
        """Train the candidate, unless nothing changed that it would be trained on."""
        held = held_uris(self.nights, self.earlier, self.night, self.config.dataset)
        config = self._training(held)
        data = _training_data(config, ingest["version"], held)
        last = last_step(self.earlier, "train", with_key="data")
        if last is not None and last["data"] == data:
            why = "no labelled picture has changed since the last candidate was trained"
            return {"candidate": None, "why": why, "data": data}

        published: list[Record] = []

        def on_published(outcome: TrainOutcome) -> None:
            self.services.write_training_page(outcome)
            record = {"candidate": outcome.version.version, "id": outcome.version.id, "data": data}
            record |= {"held": len(held), "epochs": outcome.result.epochs}
            # Recorded before the run's marker is deleted: a kill between them trains no second one.
            published.append(self.night.complete("train", record | {"seconds": outcome.seconds}))

        run_training(config, self._launch, on_published=on_published)
        return published[-1]

    def _launch(self, task: TrainTask) -> None:
        """Run the workers of a training. Nothing is published if the lock was lost meanwhile."""
        self.services.launch(task)
        self.lease.require()

    def _executor(self, config: JobConfig) -> Executor:
        """Return an executor after whose units nothing is published if the lock was lost."""
        return LeasedExecutor(self.services.executor(config), self.lease)

    def _training(self, held: set[str]) -> TrainConfig:
        """Return the configuration of the candidate's training, without the pictures in `held`."""
        options = load_recipe(TrainConfig, self.config.training) if self.config.training else {}
        exclude = ""
        if held:
            exclude = put_list(self.nights, "held", sorted(held))
        named = {
            "backbone": self.config.backbone,
            "weights": self.config.weights,
            "regime": self.config.regime,
            "seed": self.config.seed,
            "exclude": exclude,
            "dataset": self.config.dataset,
            "models": self.config.models,
            "promote": "never",  # the gate decides
        }
        known = {field.name for field in fields(TrainConfig)}
        shared = {name: value for name, value in self.jobs.options.items() if name in known}
        return TrainConfig(**(options | named | shared))

    def _rehearse(self, start: Record, train: Record) -> Record:
        """Label some pictures with candidate and champion through the labelling worker."""
        if train["candidate"] is None:
            return {}
        versions = [self._version(train["candidate"])]
        if start["champion"] is not None:
            versions.append(self._version(start["champion"]))
        return rehearse(
            self.night,
            versions,
            models=self.models.root,
            source=self.config.archive or self.config.dataset,
            jobs=self.jobs,
        )

    def _gate(self, start: Record, train: Record, rehearsal: Record) -> Record:
        """Decide on the candidate."""
        if train["candidate"] is None:
            return {}
        candidate = self._version(train["candidate"])
        champion = None if start["champion"] is None else self._version(start["champion"])
        is_first = champion is None or champion.version == candidate.version
        comparison, decision, test = None, 1, None
        if not is_first and champion is not None:
            test = current_test(self.nights) or freeze_test(
                self.nights, _gate_ids(self.config.dataset), "the first comparison of two models"
            )
            decision = count_decision(
                self.nights,
                test,
                GateDecision(
                    night=self.night.name,
                    candidate=candidate.version,
                    champion=champion.version,
                ),
            )
            comparison = compare(
                self.models,
                candidate,
                champion,
                read_test_ids(self.nights, test),
                read_watched(self.nights, champion.id),
            )

        run = read_run(self.models, candidate)
        evidence = gather_evidence(
            candidate,
            None if is_first else champion,
            comparison,
            decision,
            rehearsal=Rehearsal.of(rehearsal),
            new_pictures=None if champion is None else _new_pictures(candidate, champion),
            beats_largest=beats_largest_class(run),
        )
        result = decide(evidence, self.config.gate)
        score = published_score(Answers.of(run))
        return {
            "verdict": result.verdict.value,
            "reasons": result.reasons,
            "checks": [asdict(check) for check in result.checks],
            "level": result.level,
            "p_value": result.p_value,
            "smallest_gain": result.smallest_gain,
            "decision": decision,
            "test_set": None if test is None else test.number,
            "test_pictures": None if comparison is None else comparison.test.pictures,
            "score": None if score is None else asdict(score),
        }

    def _promote(self, start: Record, train: Record, gate: Record) -> Record:
        """Move the alias if the gate says so, or if the recipe overrules it."""
        if train["candidate"] is None:
            return {}
        verdict, reasons = gate["verdict"], gate["reasons"]
        candidate = train["candidate"]
        why = f"night {self.night.name}: {'; '.join(reasons)}"
        if verdict != Verdict.PROMOTED and self.config.promote == "anyway":
            why = f"night {self.night.name}: promoted anyway, {verdict}: {'; '.join(reasons)}"
            verdict, reasons = Verdict.PROMOTED.value, [why]
        if verdict != Verdict.PROMOTED:
            return {"outcome": verdict, "reasons": reasons}

        current = champion_number(self.models)
        if current == candidate:  # moved before this night was killed, or the first version
            return {"outcome": verdict, "reasons": reasons}
        if current != start["champion"]:
            reason = f"version {current} was made the champion by somebody else during the night"
            return {"outcome": Verdict.HELD.value, "reasons": [reason]}
        self.lease.require()
        try:
            promote_after(self.models, self.alias, candidate, why)
        except ShortfallError as error:
            return {"outcome": Verdict.HELD.value, "reasons": [str(error)]}
        return {"outcome": verdict, "reasons": reasons}

    def _label(self) -> Record:
        """Label the archive with the champion."""
        champion = champion_number(self.models)
        if not self.config.archive or champion is None:
            return {}
        return label_archive(
            self.night,
            self.jobs.label_config(
                self.config.archive, self.config.predictions, f"{self.models.root}@{champion}"
            ),
            self.config.relabel,
            self.jobs,
        )

    def _end(self, outcome: str, reasons: list[str], candidate: int | None) -> NightRecord:
        record = NightRecord(
            night=self.night.name,
            began=self.night.begin.began,
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            outcome=outcome,  # type: ignore[arg-type]
            reasons=reasons,
            steps=self.night.done,
            champion=champion_number(self.models),
            candidate=candidate,
            seconds=round(time.monotonic() - self.started, 1),
        )
        end_night(self.night, record)
        tell(
            self.config.hooks,
            {
                name: getattr(record, name)
                for name in ("night", "outcome", "reasons", "champion", "candidate")
            },
        )
        return record

    def _version(self, number: int) -> ModelVersion:
        return get_model(self.models, number)


def _shared_options(config: NightlyConfig) -> dict[str, Any]:
    """Return the options that every job of a night takes from its configuration."""
    names = ("address", "workers", "unit_timeout_s", "log_format")
    return {name: getattr(config, name) for name in names}


def _training_data(config: TrainConfig, version: int, held: set[str]) -> str:
    """Return a hash of all that a training is a function of: labelled samples and options."""
    index = open_dataset(normalize_uri(config.dataset), version=version).index
    rows = index.select(["uri", "sample_id", "label", "split"]).to_pylist()
    samples = sorted(
        [row["sample_id"], row["label"], row["split"]]
        for row in rows
        if row["label"] and row["split"] and row["uri"] not in held
    )
    return fingerprint([samples, as_dict(config)])


def _new_pictures(candidate: ModelVersion, champion: ModelVersion) -> int | None:
    """Return the number of training pictures of the candidate that the champion had not.

    None if the dataset version of one of them was deleted.
    """
    ids = []
    for version in (candidate, champion):
        trained_on = version.lineage["dataset"]
        try:
            index = open_dataset(trained_on["uri"], version=trained_on["version"]).index
        except RequestError:
            return None
        rows = index.select(["sample_id", "split", "label"]).to_pylist()
        ids.append({row["sample_id"] for row in rows if row["split"] == "train" and row["label"]})
    return len(ids[0] - ids[1])
