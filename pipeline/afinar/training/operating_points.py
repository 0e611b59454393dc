"""Operating points of a binary classifier: thresholds at a stated precision or recall.

The prediction of argmax is the threshold 0.5 of the second class's probability. Here thresholds are
chosen on the validation split, and their precision and recall are those on the test split, which
chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from afinar.config.operating_points import Measure, OperatingTarget

_CURVE_POINTS: Final = 200
_DIGITS: Final = 6  # of the numbers in a stored curve


@dataclass(frozen=True)
class BinaryScores:
    """Probabilities of the second class float64 [n], and True for the samples that have it."""

    scores: NDArray[np.float64]
    positive: NDArray[np.bool_]

    @property
    def has_both_classes(self) -> bool:
        """True if precision and recall are defined."""
        return bool(self.positive.any() and not self.positive.all())


@dataclass(frozen=True)
class PointMetrics:
    """Counts at a threshold: samples whose score reaches it are predicted as the second class."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    def as_dict(self) -> dict[str, Any]:
        """Return the counts with precision and recall; precision is None without a prediction."""
        predicted = self.true_positives + self.false_positives
        positives = self.true_positives + self.false_negatives
        return {
            "precision": self.true_positives / predicted if predicted else None,
            "recall": self.true_positives / positives,
            **vars(self),
        }


def metrics_at(split: BinaryScores, threshold: float) -> PointMetrics:
    """Return the counts of a split at a threshold."""
    predicted = split.scores >= threshold
    return PointMetrics(
        true_positives=int((predicted & split.positive).sum()),
        false_positives=int((predicted & ~split.positive).sum()),
        false_negatives=int((~predicted & split.positive).sum()),
        true_negatives=int((~predicted & ~split.positive).sum()),
    )


@dataclass(frozen=True)
class Curve:
    """Counts of a split at each of its distinct scores, in descending order.

    `true_positives` and `false_positives` int64 [m] are those of the samples whose score is at
    least `thresholds` float64 [m].
    """

    thresholds: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]

    @classmethod
    def of(cls, split: BinaryScores) -> Curve:
        """Return the curve of a split. Example: equal scores make one point."""
        order = np.argsort(-split.scores, kind="stable")
        scores, positive = split.scores[order], split.positive[order]
        last = np.flatnonzero(np.append(np.diff(scores) != 0, True))
        true_positives = np.cumsum(positive, dtype=np.int64)[last]
        return cls(scores[last], true_positives, last + 1 - true_positives)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of positives among the predicted ones."""
        return np.asarray(
            np.divide(self.true_positives, self.true_positives + self.false_positives), np.float64
        )

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of predicted ones among the positives; also the true positive rate."""
        return np.asarray(np.divide(self.true_positives, self.true_positives[-1]), np.float64)

    @property
    def false_positive_rate(self) -> NDArray[np.float64]:
        """Share of predicted ones among the negatives."""
        return np.asarray(np.divide(self.false_positives, self.false_positives[-1]), np.float64)

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall curve as scikit-learn sums it, without interpolation."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())

    def as_dict(self) -> dict[str, list[float]]:
        """Return at most 200 points of the curve as JSON values."""
        count = len(self.thresholds)
        chosen = np.unique(np.linspace(0, count - 1, min(count, _CURVE_POINTS)).round().astype(int))
        columns = {
            "threshold": self.thresholds,
            "precision": self.precision,
            "recall": self.recall,
            "false_positive_rate": self.false_positive_rate,
        }
        return {name: values[chosen].round(_DIGITS).tolist() for name, values in columns.items()}


def choose_threshold(split: BinaryScores, measure: Measure, value: float) -> float | None:
    """Return the threshold at which `measure` is at least `value` and the other one is largest.

    It lies midway between two scores of the split, so that rounding of a score does not change its
    prediction. Returns None if no threshold reaches the value.

    Example: positives have the scores 0.9, 0.8 and 0.4, negatives 0.6 and 0.1. A precision of 1 is
    reached above 0.6, with the recall 2/3: the threshold is 0.7. A recall of 1 is reached up to
    0.4, with the precision 3/4: the threshold is 0.25.
    """
    curve = Curve.of(split)
    precision, recall = curve.precision, curve.recall
    bounded, other = (precision, recall) if measure == "precision" else (recall, precision)

    # Rounding: 19 / 20 must reach 0.95.
    reached = np.flatnonzero(bounded >= value - 1e-12)
    if not len(reached):
        return None
    best = reached[np.lexsort((bounded[reached], other[reached]))[-1]]

    score = float(curve.thresholds[best])
    is_lowest = best + 1 == len(curve.thresholds)
    below = 0.0 if is_lowest else float(curve.thresholds[best + 1])
    middle = (score + below) / 2
    return middle if middle > below else score


def operating_points(
    targets: Iterable[OperatingTarget], validation: BinaryScores, test: BinaryScores
) -> dict[str, Any]:
    """Return thresholds chosen on validation, their results on both splits, and test's curves.

    Both splits must have both classes. The result has JSON values only.
    """
    curve = Curve.of(test)
    points = []
    for target in targets:
        threshold = choose_threshold(validation, target.measure, target.value)
        results = {
            name: None if threshold is None else metrics_at(split, threshold).as_dict()
            for name, split in (("val", validation), ("test", test))
        }
        points.append(
            {"measure": target.measure, "target": target.value, "threshold": threshold, **results}
        )
    return {
        "points": points,
        "average_precision": curve.average_precision,
        "curve": curve.as_dict(),
    }
