"""Intervals against published figures, and verdicts that can go either way."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from afinar.evaluation.comparison import RunResult, best_run, verdicts
from afinar.evaluation.intervals import (
    calibration_error,
    confusion,
    paired_difference,
    reliability,
    wilson,
)
from afinar.models.registry.versions import ModelVersion, find_model

from tests.conftest import Trained


def test_wilson_agrees_with_a_published_example() -> None:
    """Newcombe 1998 (doi 10.1002/(SICI)1097-0258(19980430)17:8<857), table I: 81 of 263, and 0 of 20."""
    interval = wilson(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert wilson(0, 20).low == 0.0


def test_a_paired_difference_is_symmetric_and_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        one, other = rng.random(200) < 0.8, rng.random(200) < 0.7
        interval = paired_difference(one, other)
        mirrored = paired_difference(other, one)
        assert (interval.low, interval.high) == pytest.approx((-mirrored.high, -mirrored.low))
        covered += interval.low <= 0.1 <= interval.high
    assert covered >= 0.92 * 400


def test_reliability_gathers_predictions_by_confidence() -> None:
    scores = np.array([0.2, 0.95, 1.0, 0.99, 0.15])
    bins = reliability(scores, np.array([True, True, False, True, False]), bins=10)
    assert [(one.samples, one.hits) for one in bins] == [(2, 1), (3, 2)], (
        "of the interval (a, b], b is part"
    )
    assert [one.confidence for one in bins] == pytest.approx([0.175, 0.98])
    assert calibration_error(bins) == pytest.approx((2 * 0.325 + 3 * (0.98 - 2 / 3)) / 5)


def test_a_reports_calibration_error_is_that_of_the_scores() -> None:
    import torch
    from afinar.training.metrics import score

    logits = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(500) % 4
    best = logits.softmax(dim=1).max(dim=1)
    bins = reliability(best.values.numpy(), (best.indices == targets).numpy())
    assert calibration_error(bins) == pytest.approx(
        score(logits, targets, list("abcd")).calibration_error, abs=1e-6
    )


def test_confusion_counts_rows_as_truth() -> None:
    counts = confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
    np.testing.assert_array_equal(counts, [[1, 1], [0, 1]])


def result(version: ModelVersion, regime: str, right: int, of: int = 200) -> RunResult:
    labels = ["moss" if number % 2 else "rust" for number in range(of)]
    predicted = [label if number < right else "other" for number, label in enumerate(labels)]
    test = pa.table(
        {"sample_id": [f"{n:04d}" for n in range(of)], "label": labels, "predicted": predicted}
    )
    metrics: dict[str, Any] = {**version.metrics, "val": {"top1": right / of, "loss": 1.0}}
    return RunResult(dataclasses.replace(version, regime=regime, metrics=metrics), [], test)


@pytest.mark.parametrize(
    ("scratch", "full", "holds"),
    [
        (140, 190, [True, True]),
        (140, 142, [False, True]),
        (100, 190, [True, False]),
        (60, 50, [False, False]),
    ],
)
def test_the_report_says_which_claim_holds(
    trained: Trained, scratch: int, full: int, holds: list[bool]
) -> None:
    version = find_model(trained.champion)[1]
    runs = [result(version, "scratch", scratch), result(version, "full", full)]
    said = verdicts(runs)
    assert [verdict.holds for verdict in said] == holds
    assert all(
        ("does not" in one.sentence or "not shown" in one.sentence) != one.holds for one in said
    )


def test_the_best_is_chosen_by_validation(trained: Trained) -> None:
    version = find_model(trained.champion)[1]
    runs = [
        result(version, "scratch", 150),
        result(version, "frozen", 180),
        result(version, "full", 170),
    ]
    assert best_run(runs).name == "frozen"
