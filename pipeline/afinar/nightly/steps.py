"""Steps of a night. Each returns a record of JSON values, which is stored before the next begins.

`nightly.night` calls them in this order: start, ingest, watch, train, evaluate, rehearse, gate,
promote, label. A step that is run again after a kill finds what it has published before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from afinar.config.base import ClusterJobConfig
from afinar.config.ingest import IngestConfig
from afinar.config.nightly import NightlyConfig
from afinar.config.recipes import load_recipe
from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import AfinarError, ModelError, ShortfallError
from afinar.evaluation.comparison import read_run
from afinar.evaluation.gate import Evidence, Verdict, decide
from afinar.ingestion.driver import run_ingest
from afinar.models.networks.catalogue import require_backbone
from afinar.models.registry.aliases import champion_number, promote
from afinar.models.registry.history import VersionDecision, record_decision
from afinar.models.registry.versions import ModelVersion, find_champion, get_model
from afinar.nightly.archive import label_archive
from afinar.nightly.evidence import (
    Answers,
    Comparison,
    Rehearsal,
    beats_largest_class,
    gather_evidence,
    published_score,
)
from afinar.nightly.frozen import gate_ids
from afinar.nightly.inputs import reject_note
from afinar.nightly.jobs import Jobs
from afinar.nightly.lock import Lease, LeaseLostError
from afinar.nightly.records import (
    FrozenTest,
    GateDecision,
    Night,
    NightRecord,
    count_decision,
    current_test,
    freeze_test,
    put_list,
    read_test_ids,
)
from afinar.nightly.rehearsal import rehearse
from afinar.nightly.samples import new_pictures, new_shard_bytes, training_data
from afinar.nightly.watch import Champion, answer, held_uris, read_watched, watch
from afinar.storage.open import normalize_uri, open_store
from afinar.units.executor import Executor

if TYPE_CHECKING:
    from afinar.training.driver import TrainOutcome
    from afinar.training.task import TrainTask

Record = dict[str, Any]

_FEW_NEW: Final = 500  # pictures whose features one worker computes as fast as several are started


@dataclass(frozen=True, kw_only=True)
class Services:
    """Services that run the jobs: an executor for a configuration, and the launcher of trainings.

    `write_training_page` is called when a version has been published.
    """

    executor: Callable[[ClusterJobConfig], Executor]
    launch: Callable[[TrainTask], None]
    write_training_page: Callable[[TrainOutcome], None] = lambda _: None


class _Gathered(NamedTuple):
    """Evidence on a candidate, and what it was gathered from.

    `today` are the candidate's answers. `decision` is the number of this decision on `test`.
    """

    evidence: Evidence
    today: Answers
    comparison: Comparison | None
    test: FrozenTest | None
    decision: int


class _LeaseLost(Exception):  # noqa: N818
    """The lock was lost during a training.

    It is no AfinarError: a training with a result goes on to its publication after those.
    """

    def __init__(self, error: LeaseLostError) -> None:
        super().__init__(str(error))
        self.error = error


class Steps:
    """Steps of one night, and what they share: configuration, lock, stores, earlier nights.

    `alias_record` is the number of the champion's record after which this night may move the alias.
    """

    def __init__(
        self,
        config: NightlyConfig,
        services: Services,
        lease: Lease,
        night: Night,
        *,
        earlier: list[NightRecord],
        jobs: Jobs,
        alias_record: int,
    ) -> None:
        self.config, self.services, self.lease, self.night = config, services, lease, night
        self.earlier, self.jobs, self.alias_record = earlier, jobs, alias_record
        self.nights = night.store
        self.models = open_store(normalize_uri(config.models))

    def start(self) -> Record:
        """Record the champion that a candidate of this night has to beat."""
        return {"champion": find_champion(self.models)}

    def ingest(self) -> Record:
        """Bring the dataset up to date with its source."""
        config = IngestConfig(
            source=self.config.source,
            dataset=self.config.dataset,
            labels=self.config.labels,
            split=self.config.split,
            seed=self.config.seed,
            size=self.config.size,
            fit=self.config.fit,
            max_reject_rate=self.config.max_reject_rate,
            **self.jobs.options,
        )
        outcome = run_ingest(config, self.jobs.executor(config))
        version = outcome.summary.version
        return {
            "published": outcome.published,
            **asdict(outcome.summary),
            "bytes": new_shard_bytes(config.dataset, version) if outcome.published else 0,
        }

    def watch(self, start: Record, ingest: Record) -> Record:
        """Compare tonight's labels and pictures with the champion's answers."""
        watched = [
            record.steps["ingest"]
            for record in self.earlier
            if "watch" in record.steps and "ingest" in record.steps
        ]
        record: Record = {"new": 0, "counts": {}, "alarms": [], "held": None, "notes": []}
        has_change = bool(watched) and watched[-1]["version"] != ingest["version"]
        if start["champion"] is not None and has_change:
            # Meanwhile this process waits for the champion's answers.
            preparation = Thread(target=_load_libraries, args=(self.config.backbone,), daemon=True)
            preparation.start()
            before = self.jobs.written
            record = watch(
                self.night,
                self.earlier,
                dataset=self.config.dataset,
                versions=(watched[-1]["version"], ingest["version"]),
                champion=self._champion(start["champion"]),
                rules=self.config.watch,
                jobs=self.jobs,
            )
            record["bytes"] = self.jobs.written - before
            preparation.join()
        if watched and self.config.watch.inputs:
            record["notes"] += filter(None, [reject_note(ingest, watched)])
        return record

    def _champion(self, number: int) -> Champion:
        version = self._version(number)
        return Champion(
            spec=self._spec(number),
            classes=set(version.classes),
            answers=Answers.of(self.models, version),
        )

    def train(self, start: Record, ingest: Record, watched: Record) -> Record:
        """Train the candidate, unless nothing changed that it would be trained on."""
        held = held_uris(self.nights, self.earlier, self.night, self.config.dataset)
        config = self._training(held)
        data = training_data(config, ingest["version"], held)
        trained = [record for record in self.earlier if "train" in record.steps]
        last = trained[-1] if trained else None
        if last is not None and last.steps["train"]["data"] == data:
            before = last.steps["train"]
            if before["candidate"] is not None and "promote" not in last.steps:
                return {**before, "trained_by": last.night}  # it failed before its decision
            why = "no labelled picture has changed since the last candidate was trained"
            return {"candidate": None, "why": why, "data": data}

        from afinar.training.driver import run_training

        published: list[Record] = []

        def on_published(outcome: TrainOutcome) -> None:
            self.services.write_training_page(outcome)
            version = outcome.version
            record = {
                "candidate": version.version,
                "id": version.id,
                "data": data,
                "held": len(held),
                "epochs": outcome.result.epochs,
                "bytes": version.weights.bytes + version.golden.bytes,
                "seconds": round(outcome.seconds, 2),
            }
            # Recorded before the run's marker is deleted: a kill between them trains no second one.
            published.append(self.night.complete("train", record))

        if config.regime == "frozen" and trained and watched["new"] <= _FEW_NEW:
            # Other features are cached: several workers would not pay for their start.
            config = replace(config, workers=1, min_workers=0)
        if self.config.begin == "champion" and start["champion"] is not None:
            config = replace(config, weights=self._spec(start["champion"]))
        try:
            run_training(config, self._launch, on_published=on_published)
        except _LeaseLost as lost:
            raise lost.error from lost
        return published[-1]

    def _launch(self, task: TrainTask) -> None:
        """Run the workers of a training. Nothing is published if the lock was lost meanwhile."""
        self.services.launch(task)
        try:
            self.lease.require()
        except LeaseLostError as error:
            raise _LeaseLost(error) from error

    def _training(self, held: set[str]) -> TrainConfig:
        """Return the configuration of the candidate's training, without the pictures in `held`."""
        options = load_recipe(TrainConfig, self.config.training) if self.config.training else {}
        named = {
            "backbone": self.config.backbone,
            "weights": self.config.weights,
            "regime": self.config.regime,
            "seed": self.config.seed,
            "exclude": put_list(self.nights, "held", sorted(held)) if held else "",
            "dataset": self.config.dataset,
            "models": self.config.models,
            "promote": "never",  # the gate decides
        }
        known = {field.name for field in fields(TrainConfig)}
        shared = {name: value for name, value in self.jobs.options.items() if name in known}
        return TrainConfig(**(options | named | shared))

    def rehearse(self, start: Record, train: Record) -> Record:
        """Label some pictures with candidate and champion through the labelling worker.

        A candidate that the other checks of the gate refuse is not rehearsed: no rehearsal can
        make up for that.
        """
        if self.config.promote != "anyway":
            decision = decide(self._gather(start, train, None).evidence, self.config.gate)
            if decision.verdict is Verdict.REFUSED:
                return {"skipped": "; ".join(decision.reasons)}
        before = self.jobs.written
        record = rehearse(
            self.night,
            self._version(train["candidate"]),
            None if start["champion"] is None else self._version(start["champion"]),
            models=self.models.root,
            source=self.config.archive or self.config.dataset,
            jobs=self.jobs,
        )
        return {**record, "bytes": self.jobs.written - before}

    def evaluate(self, start: Record, train: Record) -> Record:
        """Label the test pictures of today that the champion has not answered yet."""
        if start["champion"] is None:
            return {"answered": 0}
        candidate = self._version(train["candidate"])
        today = Answers.of(self.models, candidate)
        known = self._answers(self._version(start["champion"]))
        missing = today.predicted.keys() - known.predicted.keys()
        if not missing:
            return {"answered": 0}

        trained_on = candidate.lineage["dataset"]
        index = open_dataset(trained_on["uri"], version=trained_on["version"]).index
        rows = index.select(["uri", "sample_id"]).to_pylist()
        wanted = [row for row in rows if row["sample_id"] in missing]
        try:
            answers = answer(self.night, wanted, self._spec(start["champion"]), self.jobs)
        except ModelError as error:
            return {"answered": 0, "note": f"the champion cannot be evaluated: {error}"}
        return {"answered": len(answers)}

    def _answers(self, champion: ModelVersion) -> Answers:
        """Return the champion's answers for its own test pictures and those of the nights."""
        watched = Answers.of_predictions(read_watched(self.nights, champion.id))
        return Answers.of(self.models, champion).with_more(watched)

    def gate(self, start: Record, train: Record, rehearsal: Record) -> Record:
        """Decide on the candidate."""
        gathered = self._gather(start, train, Rehearsal.of(rehearsal))
        today, comparison, test = gathered.today, gathered.comparison, gathered.test
        result = decide(gathered.evidence, self.config.gate)
        return {
            "verdict": result.verdict.value,
            "reasons": result.reasons,
            "checks": [asdict(check) for check in result.checks],
            "level": result.level,
            "p_value": result.p_value,
            "smallest_gain": result.smallest_gain,
            "decision": gathered.decision,
            "test_set": None if test is None else test.number,
            "test_pictures": None if comparison is None else comparison.test.pictures,
            "gain": None if comparison is None else comparison.test.gain,
            "score": _score(today, today),
            "champion_score": None if comparison is None else _score(comparison.champion, today),
        }

    def _gather(self, start: Record, train: Record, rehearsal: Rehearsal | None) -> _Gathered:
        """Return the evidence on the candidate. This counts a decision on the frozen test set."""
        candidate = self._version(train["candidate"])
        champion = None if start["champion"] is None else self._version(start["champion"])
        today = Answers.of(self.models, candidate)
        comparison, decision, test = None, 1, None
        if champion is not None:
            test, decision = self._count(candidate, champion)
            comparison = Comparison(
                candidate=today,
                champion=self._answers(champion),
                frozen=read_test_ids(self.nights, test),
                common_classes=set(candidate.classes) & set(champion.classes),
            )
        evidence = gather_evidence(
            candidate,
            champion,
            comparison,
            decision,
            rehearsal=rehearsal,
            new_pictures=None if champion is None else new_pictures(candidate, champion),
            beats_largest=beats_largest_class(read_run(self.models, candidate)),
        )
        return _Gathered(evidence, today, comparison, test, decision)

    def _count(self, candidate: ModelVersion, champion: ModelVersion) -> tuple[FrozenTest, int]:
        """Return the frozen test set, and the number of this decision on it."""
        test = current_test(self.nights) or freeze_test(
            self.nights, gate_ids(self.config.dataset), "the first comparison of two models"
        )
        decision = GateDecision(
            night=self.night.name, candidate=candidate.version, champion=champion.version
        )
        return test, count_decision(self.nights, test, decision)

    def promote(self, start: Record, train: Record, gate: Record) -> Record:
        """Move the alias if the gate or the recipe says so, and record the decision."""
        record = self._move(start, train["candidate"], gate)
        record_decision(
            self.models,
            train["candidate"],
            VersionDecision(
                night=self.nights.uri(self.night.name),
                outcome=record["outcome"],
                reasons=record["reasons"],
                champion=start["champion"],
                test_set=gate["test_set"],
                decision=None if gate["test_set"] is None else gate["decision"],
                p_value=gate["p_value"],
                level=gate["level"],
                created=self.night.begin.began,
            ),
        )
        return record

    def _move(self, start: Record, candidate: int, gate: Record) -> Record:
        verdict, reasons = gate["verdict"], gate["reasons"]
        why = f"night {self.night.name}: {'; '.join(reasons)}"
        if verdict != Verdict.PROMOTED and self.config.promote == "anyway":
            reasons = [f"promoted anyway, the gate says {verdict}: {'; '.join(reasons)}"]
            why = f"night {self.night.name}: {reasons[0]}"
            verdict = Verdict.PROMOTED.value
        if verdict != Verdict.PROMOTED:
            return {"outcome": verdict, "reasons": reasons}

        current = champion_number(self.models)
        if current == candidate:  # moved before this night was killed
            return {"outcome": verdict, "reasons": reasons}
        if current is not None and current != start["champion"]:
            reason = f"version {current} was made the champion by somebody else during the night"
            return {"outcome": Verdict.HELD.value, "reasons": [reason]}
        self.lease.require()
        try:
            promote(self.models, candidate, why, after=self.alias_record)
        except ShortfallError as error:
            return {"outcome": Verdict.HELD.value, "reasons": [str(error)]}
        return {"outcome": verdict, "reasons": reasons}

    def label(self) -> Record:
        """Label the archive with the champion."""
        champion = find_champion(self.models)
        if not self.config.archive or champion is None:
            return {}
        before = self.jobs.written
        record = label_archive(
            self.night,
            self.jobs.label_config(
                self.config.archive, self.config.predictions, self._spec(champion)
            ),
            self.config.relabel,
            self.jobs,
        )
        return {**record, "bytes": self.jobs.written - before}

    def _version(self, number: int) -> ModelVersion:
        return get_model(self.models, number)

    def _spec(self, number: int) -> str:
        return f"{self.models.root}@{number}"


def _load_libraries(backbone: str) -> None:
    """Import what a training needs, and what torch imports when it first builds a network."""
    import_module("afinar.training.driver")
    from afinar.models.networks.backbones import build_backbone, meta_device_context

    # An error is one of the training, too, which reports it.
    with suppress(AfinarError), meta_device_context(backbone):
        build_backbone(backbone, require_backbone(backbone).input_size)


def _score(answers: Answers, today: Answers) -> Record | None:
    score = published_score(answers, today.labels)
    return None if score is None else asdict(score)
