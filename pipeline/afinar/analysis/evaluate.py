"""Evaluation of a published model on a dataset, plain and under common corruptions: the driver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.analysis.evaluate_worker import (
    EvaluationUnit,
    UnitPredictions,
    joined,
    make_worker,
)
from afinar.config.evaluate import EvaluateConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import RequestError
from afinar.evaluation.contents import find_contents
from afinar.evaluation.corruptions import Corruption, corruptions
from afinar.evaluation.intervals import Interval, paired_difference, wilson
from afinar.labelling.source import require_view
from afinar.models.registry.versions import ModelVersion, find_model
from afinar.sources.entry import SPLITS
from afinar.storage.open import normalize_uri
from afinar.training.distributed import Group
from afinar.training.evaluator import LocalLogits
from afinar.training.final_evaluation import compute_split_metrics
from afinar.units.executor import Executor, RetryPolicy
from afinar.units.progress import ProgressReporter

_UNIT: Final = 256  # pictures of a unit
_UNIT_DEADLINE_S: Final = 1800.0


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Samples to evaluate: rows of the index and class numbers of the model, both int64 [n].

    `corrupted` are positions in `rows`. `unknown` counts pictures by their class that the model
    lacks: they are not evaluated. `missing` are classes of the model that no picture has: to
    predict one of them is a mistake.
    """

    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    corrupted: NDArray[np.int64]
    unknown: dict[str, int]
    missing: list[str]


@dataclass(frozen=True, kw_only=True)
class CorruptedAccuracy:
    """Accuracy under one corruption, and its difference to that of the same pictures as stored."""

    name: str
    strength: int
    setting: str
    accuracy: Interval
    difference: Interval


@dataclass(frozen=True, kw_only=True)
class EvaluateOutcome:
    """Metrics as in training's report, predictions for `plan.rows`, and accuracy when corrupted.

    `predicted` int64 [n] are class numbers of the model, `scores` float32 [n] their probabilities.
    """

    dataset: Dataset
    model: str
    version: ModelVersion
    plan: EvaluationPlan
    metrics: dict[str, Any]
    predicted: NDArray[np.int64]
    scores: NDArray[np.float32]
    accuracy: Interval
    plain: Interval
    corrupted: list[CorruptedAccuracy]
    seconds: float
    notes: list[str]

    @property
    def hits(self) -> NDArray[np.bool_]:
        """True for each correct prediction."""
        return np.asarray(self.predicted == self.plan.targets, dtype=np.bool_)


def run_evaluation(config: EvaluateConfig, executor: Executor) -> EvaluateOutcome:
    """Predict the pictures of a split, plain and corrupted. Nothing is written.

    Raises RequestError if the dataset cannot be the model's input, or if no picture of the split
    has a class of the model.
    """
    started = time.perf_counter()
    uri = normalize_uri(config.dataset)
    store, version = find_model(config.model)
    dataset = open_dataset(uri)
    require_view(uri, dataset.manifest.version, version.stored_view)
    plan = plan_evaluation(config, dataset, version)
    model = f"{store.root}@{version.id}"

    conditions: list[Corruption | None] = [None, *corruptions(config.corruption_names)]
    predictions = _predict(executor, dataset, model, plan, conditions)
    plain = predictions[0]
    hits = plain.predicted == plan.targets
    kept = hits[plan.corrupted]
    results = [
        _corrupted(condition, found.predicted == plan.targets[plan.corrupted], kept)
        for condition, found in zip(conditions[1:], predictions[1:], strict=True)
        if condition is not None
    ]
    return EvaluateOutcome(
        dataset=dataset,
        model=model,
        version=version,
        plan=plan,
        metrics=_metrics(plain.logits, plan.targets, version),
        predicted=plain.predicted,
        scores=plain.scores,
        accuracy=wilson(int(hits.sum()), len(hits)),
        plain=wilson(int(kept.sum()), len(kept)),
        corrupted=results,
        seconds=round(time.perf_counter() - started, 1),
        notes=_notes(config, dataset, version, plan),
    )


def plan_evaluation(
    config: EvaluateConfig, dataset: Dataset, version: ModelVersion
) -> EvaluationPlan:
    """Choose the pictures of the split that have a class of the model, each content once."""
    contents = find_contents(dataset)
    is_wanted = contents.labels >= 0
    if config.split != "all":
        is_wanted &= contents.splits == SPLITS.index(config.split)
    if not is_wanted.any():
        raise RequestError(
            f"--split {config.split}: {dataset.store.root} has no labelled picture in it; give "
            "another split, or --split all"
        )

    numbers = {name: number for number, name in enumerate(version.classes)}
    of_class = np.array([numbers.get(name, -1) for name in dataset.classes])
    labels = contents.labels[is_wanted]
    targets, rows = of_class[labels], contents.rows[is_wanted]
    if not (targets >= 0).any():
        raise RequestError(
            f"no picture has a class of the model: the dataset has {_some(dataset.classes)}, the "
            f"model {_some(version.classes)}"
        )
    unknown = np.bincount(labels[targets < 0], minlength=len(dataset.classes))
    present = set(targets.tolist())
    rows, targets = rows[targets >= 0], targets[targets >= 0]
    return EvaluationPlan(
        rows=rows,
        targets=targets,
        corrupted=_sample(dataset, rows, config.corrupted),
        unknown={
            dataset.classes[number]: int(unknown[number]) for number in np.flatnonzero(unknown)
        },
        missing=[name for number, name in enumerate(version.classes) if number not in present],
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _sample(dataset: Dataset, rows: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return positions of at most `limit` rows (0: all), those with the smallest content hashes."""
    if not limit or len(rows) <= limit:
        return np.arange(len(rows))
    ids = dataset.index.column("sample_id").to_numpy(zero_copy_only=False)[rows]
    return np.sort(np.argsort(ids.astype(str), kind="stable")[:limit])


def _predict(
    executor: Executor,
    dataset: Dataset,
    model: str,
    plan: EvaluationPlan,
    conditions: list[Corruption | None],
) -> list[UnitPredictions]:
    """Return the predictions of each condition; only those without a corruption have logits."""
    units = list(_units(plan, conditions))
    make_work = partial(make_worker, dataset.store.root, dataset.manifest.version, model)
    total = len(plan.rows) + (len(conditions) - 1) * len(plan.corrupted)
    found: dict[tuple[int, int], UnitPredictions] = {}
    with ProgressReporter("evaluate", total) as progress:
        for result in executor.run(make_work, units, _policy()):
            found[result.condition, result.start] = result
            progress.add(len(result.predicted))
    return [
        joined([found[key] for key in sorted(found) if key[0] == number])
        for number in range(len(conditions))
    ]


def _policy() -> RetryPolicy[EvaluationUnit]:
    """Return the policy of the job. A worker reads and corrupts the pictures itself."""
    return RetryPolicy(uses_gpus=True, deadline_s=lambda unit: _UNIT_DEADLINE_S)


def _units(plan: EvaluationPlan, conditions: list[Corruption | None]) -> Iterator[EvaluationUnit]:
    for number, corruption in enumerate(conditions):
        rows = plan.rows if corruption is None else plan.rows[plan.corrupted]
        for start in range(0, len(rows), _UNIT):
            yield EvaluationUnit(
                condition=number,
                start=start,
                rows=rows[start : start + _UNIT],
                corruption=corruption,
            )


def _metrics(
    logits: NDArray[np.float32], targets: NDArray[np.int64], version: ModelVersion
) -> dict[str, Any]:
    """Return the metrics of a split as a training records them."""
    local = LocalLogits(
        np.arange(len(targets)), torch.from_numpy(logits), torch.from_numpy(targets)
    )
    return compute_split_metrics(local, version.classes, Group(alone=True), version.temperature)


def _corrupted(
    corruption: Corruption, hits: NDArray[np.bool_], plain: NDArray[np.bool_]
) -> CorruptedAccuracy:
    return CorruptedAccuracy(
        name=corruption.name,
        strength=corruption.strength,
        setting=corruption.setting,
        accuracy=wilson(int(hits.sum()), len(hits)),
        difference=paired_difference(hits, plain),
    )


def _notes(
    config: EvaluateConfig, dataset: Dataset, version: ModelVersion, plan: EvaluationPlan
) -> list[str]:
    notes = []
    if plan.unknown:
        counts = ", ".join(f"{name} {count}" for name, count in plan.unknown.items())
        notes.append(
            f"{sum(plan.unknown.values())} pictures are not evaluated, because the model does not "
            f"know their classes: {counts}"
        )
    if plan.missing:
        notes.append(
            f"no evaluated picture has these classes of the model: {', '.join(plan.missing)}; to "
            "predict one of them counts as a mistake"
        )
    trained_on = (version.lineage.get("dataset") or {}).get("uri")
    if trained_on == dataset.store.root and config.split != "test":
        notes.append(
            "the model was trained on this dataset: only --split test shows how it does on other "
            "pictures"
        )
    if len(plan.corrupted) < len(plan.rows):
        notes.append(
            f"corruptions were measured on {len(plan.corrupted)} of {len(plan.rows)} pictures; "
            "--corrupted 0 takes all"
        )
    return notes
