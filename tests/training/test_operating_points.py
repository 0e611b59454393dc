"""Operating points and curves of two classes, against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from afinar.config.operating_points import OperatingTarget, parse_operating_points
from afinar.errors import RequestError
from afinar.training.operating_points import (
    BinaryScores,
    Curve,
    choose_threshold,
    metrics_at,
    operating_points,
)
from tests.conftest import Trained
from tests.training.runs import config, run


def draw(samples: int, seed: int, decimals: int = 2) -> BinaryScores:
    """Return overlapping classes with tied scores."""
    rng = np.random.default_rng(seed)
    positive = rng.random(samples) < 0.4
    scores = 1 / (1 + np.exp(-rng.normal(np.where(positive, 1.0, -1.0), 1.5)))
    return BinaryScores(scores.round(decimals), positive)


@pytest.mark.parametrize("seed", range(3))
def test_curve_is_that_of_scikit_learn(seed: int) -> None:
    split = draw(500, seed)
    curve = Curve.of(split)
    precision, recall, thresholds = sk.precision_recall_curve(split.positive, split.scores)
    np.testing.assert_allclose(curve.thresholds, thresholds[::-1])
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1])
    rates, _, _ = sk.roc_curve(split.positive, split.scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, rates[1:])
    expected = sk.average_precision_score(split.positive, split.scores)
    assert curve.average_precision == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("value", [0.6, 0.8, 0.95])
def test_threshold_reaches_its_target_and_no_other_one_is_better(seed: int, value: float) -> None:
    split = draw(300, seed)
    precision, recall, _ = sk.precision_recall_curve(split.positive, split.scores)
    threshold = choose_threshold(split, "precision", value)
    best = recall[:-1][precision[:-1] >= value]
    if threshold is None:
        assert not len(best)
    else:
        at = metrics_at(split, threshold).as_dict()
        assert at["precision"] >= value
        assert at["recall"] == pytest.approx(best.max())
        nearest = np.abs(split.scores - threshold).min()
        assert nearest > 1e-3, "a rounded score has the same prediction"

    threshold = choose_threshold(split, "recall", value)
    assert threshold is not None
    at = metrics_at(split, threshold).as_dict()
    assert at["recall"] >= value
    assert at["precision"] == pytest.approx(precision[:-1][recall[:-1] >= value].max())


def test_choose_threshold_gives_the_documented_example() -> None:
    split = BinaryScores(
        np.array([0.9, 0.8, 0.4, 0.6, 0.1]), np.array([True, True, True, False, False])
    )
    assert choose_threshold(split, "precision", 1.0) == pytest.approx(0.7)
    assert choose_threshold(split, "recall", 1.0) == pytest.approx(0.25)
    reverse = BinaryScores(-split.scores + 1, split.positive)
    assert choose_threshold(reverse, "precision", 0.9) is None


def test_points_are_chosen_on_validation_and_evaluated_on_test() -> None:
    validation, test = draw(400, 1), draw(5000, 2, decimals=6)
    result = operating_points([OperatingTarget("precision", 0.8)], validation, test)
    (point,) = result["points"]
    assert point["threshold"] == choose_threshold(validation, "precision", 0.8)
    predicted = test.scores >= point["threshold"]
    assert point["test"]["precision"] == pytest.approx(sk.precision_score(test.positive, predicted))
    assert point["test"]["recall"] == pytest.approx(sk.recall_score(test.positive, predicted))
    assert point["val"]["precision"] >= 0.8
    assert {len(values) for values in result["curve"].values()} == {200}
    assert result["curve"]["recall"][-1] == result["curve"]["false_positive_rate"][-1] == 1


def test_training_of_two_classes_records_operating_points(trained: Trained, tmp_path: Path) -> None:
    result = run(config(trained, tmp_path, epochs=4, operating_points="precision:0.9,recall:0.75"))
    binary = result.metrics["test"]["binary"]
    assert binary["positive"] == "rust"
    assert [point["measure"] for point in binary["points"]] == ["precision", "recall"]
    for point in binary["points"]:
        if point["threshold"] is not None:
            assert point["val"][point["measure"]] >= point["target"]
            counts = list(point["test"].values())[2:]
            assert sum(counts) == result.metrics["test"]["samples"]
    curve = binary["curve"]
    area = np.trapezoid([0, *curve["recall"]], [0, *curve["false_positive_rate"]])
    assert area == pytest.approx(result.metrics["test"]["auroc"], abs=1e-4)


@pytest.mark.parametrize("spec", ["precision", "accuracy:0.9", "recall:1.2", "precision:0", ""])
def test_wrong_operating_points_are_refused(spec: str) -> None:
    with pytest.raises(RequestError, match="--operating-points"):
        parse_operating_points(spec)


def test_none_reports_no_point() -> None:
    assert parse_operating_points("none") == []
    assert parse_operating_points("precision:0.9, recall:1") == [
        OperatingTarget("precision", 0.9),
        OperatingTarget("recall", 1.0),
    ]
