"""Comparing runs on one test split, and saying what holds and what does not."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.evaluation.intervals import Interval, confusion, paired_difference, wilson
from afinar.models.registry.versions import ModelVersion
from afinar.storage.arrow import from_parquet
from afinar.storage.store import Store


@dataclass(frozen=True)
class RunResult:
    """One training as its run folder has it: history per epoch, and the test split's predictions."""

    version: ModelVersion
    history: list[dict[str, Any]]
    test: pa.Table

    @property
    def name(self) -> str:
        """Regime, which is what a comparison tells runs apart by."""
        return self.version.regime

    @cached_property
    def hits(self) -> NDArray[np.bool_]:
        """Which test samples were right, in sample order."""
        test = self.test.sort_by("sample_id")
        pairs = zip(
            test.column("label").to_pylist(), test.column("predicted").to_pylist(), strict=True
        )
        return np.array([label == predicted for label, predicted in pairs], dtype=np.bool_)

    @property
    def accuracy(self) -> Interval:
        """Top-1 on test."""
        return wilson(int(self.hits.sum()), len(self.hits))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts [true class, predicted class] on test."""
        labels, predicted = (self.test.column(name).to_pylist() for name in ("label", "predicted"))
        return confusion(labels, predicted, self.version.classes)

    @property
    def validation(self) -> tuple[float, float]:
        """What runs are ranked by: validation accuracy, then the lower loss. The test split has no say."""
        score = self.version.metrics["val"]
        return score["top1"], -score["loss"]


def read_run(store: Store, version: ModelVersion) -> RunResult:
    """A published version with its run's history and test predictions."""
    run = version.lineage["run"]
    history = [json.loads(line) for line in store.get(f"{run}/history.jsonl").splitlines()]
    return RunResult(version, history, from_parquet(store.get(f"{run}/test.parquet")))


def best_run(runs: list[RunResult]) -> RunResult:
    """The best by validation."""
    return max(runs, key=lambda run: run.validation)


@dataclass(frozen=True)
class Verdict:
    """One claim about a comparison: whether it holds, and the numbers it rests on."""

    holds: bool
    sentence: str


def verdicts(runs: list[RunResult]) -> list[Verdict]:
    """Does transfer beat training from scratch, and is the scratch baseline itself in good health?"""
    scratch = next(run for run in runs if run.name == "scratch")
    transfer = best_run([run for run in runs if run.name != "scratch"])
    return [_beats(transfer, scratch), _beats_guessing(scratch)]


def _beats(one: RunResult, other: RunResult) -> Verdict:
    gap = paired_difference(one.hits, other.hits)
    value, low, high = (100 * share for share in (gap.value, gap.low, gap.high))
    numbers = f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}) on {len(one.hits)} test pictures"
    if gap.low > 0:
        return Verdict(True, f"Transfer ({one.name}) beats training from scratch by {numbers}.")
    return Verdict(
        False, f"Transfer ({one.name}) does not beat training from scratch beyond doubt: {numbers}."
    )


def _beats_guessing(run: RunResult) -> Verdict:
    (largest, count), *_ = Counter(run.test.column("label").to_pylist()).most_common(1)
    guess, got = count / len(run.hits), run.accuracy
    numbers = f"{got.value:.1%} (95 % interval {got.low:.1%} to {got.high:.1%}) against {guess:.1%}"
    if got.low > guess:
        return Verdict(
            True,
            f"The {run.name} baseline is in good health: always guessing “{largest}” is worse, {numbers}.",
        )
    return Verdict(
        False,
        f"The {run.name} baseline is not shown to beat always guessing “{largest}”, {numbers}: it is no fair baseline.",
    )
