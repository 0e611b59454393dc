"""Intervals against published figures, calibration and confusion counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afinar.evaluation.intervals import (
    calibration_error,
    confusion,
    paired_difference,
    reliability,
    wilson,
)
from afinar.training.distributed import Group
from afinar.training.metrics import compute_metrics


def test_wilson_agrees_with_a_published_example() -> None:
    """Newcombe 1998, table I: 81 of 263, 0 of 20.

    doi 10.1002/(SICI)1097-0258(19980430)17:8<857
    """
    interval = wilson(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert wilson(0, 20).low == 0.0


def test_paired_difference_is_symmetric_and_covers_the_true_value() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        first, second = rng.random(200) < 0.8, rng.random(200) < 0.7
        interval = paired_difference(first, second)
        reverse = paired_difference(second, first)
        assert (interval.low, interval.high) == pytest.approx((-reverse.high, -reverse.low))
        covered += interval.low <= 0.1 <= interval.high
    assert covered >= 0.92 * 400


def test_reliability_groups_predictions_by_confidence() -> None:
    scores = np.array([0.2, 0.95, 1.0, 0.99, 0.15])
    bins = reliability(scores, np.array([True, True, False, True, False]), bins=10)
    assert [(group.samples, group.hits) for group in bins] == [(2, 1), (3, 2)], (
        "the interval (a, b] includes b"
    )
    assert [group.confidence for group in bins] == pytest.approx([0.175, 0.98])
    assert calibration_error(bins) == pytest.approx((2 * 0.325 + 3 * (0.98 - 2 / 3)) / 5)


def test_calibration_error_equals_that_of_training_metrics() -> None:
    logits = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(500) % 4
    best = logits.softmax(dim=1).max(dim=1)
    bins = reliability(best.values.numpy(), (best.indices == targets).numpy())
    metrics = compute_metrics(logits, targets, list("abcd"), Group())
    assert calibration_error(bins) == pytest.approx(metrics.calibration_error, abs=1e-6)


def test_confusion_has_true_classes_as_rows() -> None:
    counts = confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
    np.testing.assert_array_equal(counts, [[1, 1], [0, 1]])
