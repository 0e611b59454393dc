"""Comparison of published runs on one test split, and what is statistically certain about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.evaluation.intervals import Interval, confusion, paired_difference, wilson
from afinar.models.registry.versions import ModelVersion
from afinar.storage.arrow import from_parquet
from afinar.storage.records import parse_object
from afinar.storage.store import Store


class ValidationRank(NamedTuple):
    """Key by which runs are ranked: higher accuracy on validation, then lower loss."""

    top1: float
    negative_loss: float


@dataclass(frozen=True)
class EvaluatedRun:
    """A published training: its history per epoch and its predictions for the test split."""

    version: ModelVersion
    history: list[dict[str, Any]]
    test: pa.Table

    @property
    def name(self) -> str:
        """Regime: the runs of a comparison differ in it."""
        return self.version.regime

    @cached_property
    def hits(self) -> NDArray[np.bool_]:
        """True for each correct prediction, in the order of sample ids."""
        test = self.test.sort_by("sample_id")
        labels, predicted = (test.column(name).to_numpy() for name in ("label", "predicted"))
        return np.asarray(labels == predicted, dtype=np.bool_)

    @property
    def accuracy(self) -> Interval:
        """Top-1 accuracy on the test split."""
        return wilson(int(self.hits.sum()), len(self.hits))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts [true class, predicted class] on the test split."""
        labels, predicted = (self.test.column(name).to_pylist() for name in ("label", "predicted"))
        return confusion(labels, predicted, self.version.classes)

    @property
    def never_right(self) -> list[str]:
        """Classes of which no test sample was predicted right."""
        labels, predicted = (self.test.column(name).to_pylist() for name in ("label", "predicted"))
        recognised = {label for label, name in zip(labels, predicted, strict=True) if label == name}
        return sorted(set(labels) - recognised)

    @property
    def largest_class(self) -> tuple[str, float]:
        """Most frequent class of the test split, and the accuracy of always answering it."""
        ((name, count),) = Counter(self.test.column("label").to_pylist()).most_common(1)
        return name, count / len(self.test)

    @property
    def validation(self) -> ValidationRank:
        """Rank of the run. The test split is not used: it must not choose a model."""
        metrics = self.version.metrics["val"]
        return ValidationRank(metrics["top1"], -metrics["loss"])


def read_run(store: Store, version: ModelVersion) -> EvaluatedRun:
    """Read the history and the test predictions of a published version."""
    run = version.lineage["run"]
    history = [
        parse_object(line, f"{store.uri(f'{run}/history.jsonl')}, line {number}")
        for number, line in enumerate(store.get(f"{run}/history.jsonl").splitlines(), 1)
    ]
    name = f"{run}/test.parquet"
    return EvaluatedRun(version, history, from_parquet(store.get(name), uri=store.uri(name)))


def best_run(runs: list[EvaluatedRun]) -> EvaluatedRun:
    """Return the best run by validation."""
    return max(runs, key=lambda run: run.validation)


@dataclass(frozen=True)
class Verdict:
    """A claim about a comparison: whether it holds, and a sentence with the numbers behind it."""

    holds: bool
    sentence: str


def verdicts(runs: list[EvaluatedRun]) -> list[Verdict]:
    """Return verdicts on the best run by validation, and on the baseline from scratch.

    The best run with pretrained weights should beat training from scratch, and, if it is not
    itself the head on a frozen backbone, that head, which is a linear probe. The baseline should
    beat guessing. A claim holds if the 95 % interval excludes the opposite. The runs include one
    with the regime `scratch` and at least one other.
    """
    scratch = next(run for run in runs if run.name == "scratch")
    transfer = best_run([run for run in runs if run.name != "scratch"])
    probes = [run for run in runs if run.name == "frozen" and run is not transfer]
    return [
        _beats(transfer, scratch, "training from scratch"),
        *(_beats(transfer, probe, "a linear probe (frozen)") for probe in probes),
        _beats_guessing(scratch),
    ]


def _beats(transfer: EvaluatedRun, other: EvaluatedRun, name: str) -> Verdict:
    gap = paired_difference(transfer.hits, other.hits)
    value, low, high = (100 * share for share in (gap.value, gap.low, gap.high))
    numbers = (
        f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}) on "
        f"{len(transfer.hits)} test pictures"
    )
    if gap.low > 0:
        return Verdict(True, f"Transfer ({transfer.name}) beats {name} by {numbers}.")

    return Verdict(
        False, f"Transfer ({transfer.name}) does not beat {name} with certainty: {numbers}."
    )


def _beats_guessing(run: EvaluatedRun) -> Verdict:
    """Compare a run with a model that always predicts the largest class of the test split."""
    (largest, share), accuracy = run.largest_class, run.accuracy
    numbers = (
        f"{accuracy.value:.1%} (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}) against "
        f"{share:.1%}"
    )
    if run.never_right:
        return Verdict(
            False,
            f"The {run.name} baseline is right for no picture of {', '.join(run.never_right)}: it "
            f"is no fair baseline. Over all classes it is right for {numbers} of always guessing "
            f"“{largest}”.",
        )
    if accuracy.low > share:
        return Verdict(
            True, f"The {run.name} baseline beats always guessing “{largest}”: {numbers}."
        )

    return Verdict(
        False,
        f"The {run.name} baseline is not shown to beat always guessing “{largest}”, {numbers}: it "
        "is no fair baseline.",
    )
