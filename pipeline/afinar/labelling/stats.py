"""Statistics of predicted labels, and a test for drift between two runs.

The true labels of an archive are unknown. But if its pictures change, a classifier's distribution
of labels and its confidence usually change too: Rabanser, Günnemann & Lipton, "Failing Loudly: An
Empirical Study of Methods for Detecting Dataset Shift", NeurIPS 2019. The mean confidence of a
calibrated model even estimates its accuracy: Guillory et al., "Predicting with Confidence on Unseen
Distributions", ICCV 2021.

A shift is reported if it exceeds a fixed limit and is statistically significant. The usual measure,
the population stability index, is not used: it is infinite if a class is new, and its usual limits
depend on the sample size (Yurdakul & Naranjo, "Statistical properties of the population stability
index", Journal of Risk Model Validation, 2020).

Example: the previous run labelled 120 pictures, 50 % moss and 50 % rust; this run labelled 120, 90
% moss. Total variation is 0.40, over the limit of 0.10. Of 1,999 random splits of the 240 pictures
into halves, none is as far apart, so p = 1/2000 < 0.001: drift. With 45 % and 55 % the distance is
0.05, under the limit: no drift, and no test is run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.predictions.manifest import HISTOGRAM_BINS

Counts = NDArray[np.int64]
Fractions = NDArray[np.float64]
Distance = Callable[[Fractions, Fractions], Fractions]

BINS: Final = HISTOGRAM_BINS
"""Number of bins of a confidence histogram, of equal width from 0 to 1. A bin contains its lower
edge, the last bin both edges."""

CLASSES_LIMIT: Final = 0.10
"""Limit of total variation: a tenth of the pictures would have to change class for the two runs to
agree."""

CONFIDENCE_LIMIT: Final = 0.05
"""Limit of the earth mover's distance of confidence. For a calibrated model that becomes less
confident it is five points of accuracy."""

MIN_PICTURES: Final = 100
"""Smallest run that is compared. The 95 % interval of a class fraction of 100 pictures is 10 points
to either side: with fewer, a difference of the limit's size is within the noise."""

# Two tests a night at this level give less than one false alarm a year. The test takes pictures for
# independent draws. Pictures of one box or burst are alike, so the limits above apply as well.
SIGNIFICANCE_LEVEL: Final = 0.001
_PERMUTATIONS: Final = 1999
_PERMUTATIONS_AT_ONCE: Final = 100  # with a thousand classes 0.8 MB
_MOVED: Final = 5  # classes that a sentence names


@dataclass(frozen=True)
class LabelStats:
    """Predictions by label, histogram of their scores (counts in BINS), and sum of the scores."""

    labels: dict[str, int] = field(default_factory=dict)
    histogram: tuple[int, ...] = (0,) * BINS
    score_sum: float = 0.0

    @property
    def pictures(self) -> int:
        """Number of predictions."""
        return sum(self.labels.values())

    @property
    def mean(self) -> float | None:
        """Mean score; None without predictions."""
        return self.score_sum / self.pictures if self.pictures else None

    def plus(self, other: LabelStats) -> LabelStats:
        """Return the statistics of both together."""
        bins = zip(self.histogram, other.histogram, strict=True)
        return LabelStats(
            _sort_by_label(Counter(self.labels) + Counter(other.labels)),
            tuple(count + more for count, more in bins),
            self.score_sum + other.score_sum,
        )

    def minus(self, other: LabelStats) -> LabelStats:
        """Return these statistics without the others. No count becomes negative."""
        bins = zip(self.histogram, other.histogram, strict=True)
        return LabelStats(
            _sort_by_label(Counter(self.labels) - Counter(other.labels)),
            tuple(max(count - less, 0) for count, less in bins),
            max(self.score_sum - other.score_sum, 0.0),
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "labels": self.labels,
            "histogram": list(self.histogram),
            "score_sum": round(self.score_sum, 6),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> LabelStats:
        """Return the statistics in a manifest, which were checked when it was read."""
        return cls(record["labels"], tuple(record["histogram"]), record["score_sum"])


def count_labels(table: pa.Table) -> LabelStats:
    """Return the statistics of predictions: a table with `label` and `score` (0 to 1)."""
    counts = pc.value_counts(table.column("label")).to_pylist()
    labels = Counter({count["values"]: count["counts"] for count in counts})
    # A score that is not a number counts as 0: statistics are written as JSON, which has no NaN.
    scores = np.nan_to_num(table.column("score").to_numpy().astype(np.float64))
    scores = np.clip(scores, 0.0, 1.0)
    histogram, _ = np.histogram(scores, bins=BINS, range=(0.0, 1.0))
    return LabelStats(_sort_by_label(labels), tuple(histogram.tolist()), float(scores.sum()))


@dataclass(frozen=True)
class Baseline:
    """Statistics that a run is compared with, and the name that sentences give them."""

    labels: LabelStats
    name: str


@dataclass(frozen=True, kw_only=True)
class DistributionShift:
    """Distance between two distributions.

    `chance` is the p-value, None if the distance is under the limit. `found` is True if the
    distance is over the limit and significant.
    """

    distance: float
    limit: float
    chance: float | None
    found: bool


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A comparison of two runs.

    `classes` and `confidence` are None if there were too few pictures to compare.
    """

    drifted: bool
    pictures: int
    pictures_before: int = 0
    classes: DistributionShift | None = None
    confidence: DistributionShift | None = None
    mean: float | None = None
    mean_before: float | None = None
    sentences: list[str]


def detect_drift(baseline: Baseline | None, now: LabelStats) -> Drift:
    """Compare a run with its baseline: labels by total variation, scores by earth mover's distance.

    Each distance has a permutation test. If both runs labelled the same pictures with two models,
    the two samples are not independent and the test is conservative.
    """
    if baseline is None or not now.pictures:
        sentence = "Nothing was labelled, so there is nothing to compare."
        if now.pictures:
            sentence = (
                "There is nothing to compare with: this is the first run of this source into "
                "this folder."
            )
        return Drift(drifted=False, pictures=now.pictures, mean=now.mean, sentences=[sentence])

    before = baseline.labels
    drift = Drift(
        drifted=False,
        pictures=now.pictures,
        pictures_before=before.pictures,
        mean=now.mean,
        mean_before=before.mean,
        sentences=[
            f"Not compared with {baseline.name}: one of the two has fewer than "
            f"{MIN_PICTURES} pictures."
        ],
    )
    if min(now.pictures, before.pictures) < MIN_PICTURES:
        return drift

    names = sorted({*before.labels, *now.labels})
    classes = measure_shift(
        _label_counts(before, names), _label_counts(now, names), total_variation, CLASSES_LIMIT
    )
    confidence = measure_shift(
        np.array(before.histogram, np.int64),
        np.array(now.histogram, np.int64),
        earth_mover,
        CONFIDENCE_LIMIT,
    )
    return replace(
        drift,
        drifted=classes.found or confidence.found,
        classes=classes,
        confidence=confidence,
        sentences=[
            _describe_classes(classes, baseline, now),
            _describe_confidence(confidence, baseline, now),
        ],
    )


def _label_counts(stats: LabelStats, names: list[str]) -> Counts:
    return np.array([stats.labels.get(name, 0) for name in names], np.int64)


def measure_shift(
    before: Counts, now: Counts, distance: Distance, limit: float
) -> DistributionShift:
    """Compare two histograms int64 [n]; run the permutation test if the `limit` is reached."""
    size = float(distance(before / before.sum(), now / now.sum()))
    p_value = permutation_p_value(before, now, distance) if size >= limit else None
    significant = p_value is not None and p_value < SIGNIFICANCE_LEVEL
    return DistributionShift(
        distance=round(size, 4), limit=limit, chance=p_value, found=significant
    )


def total_variation(first: Fractions, second: Fractions) -> Fractions:
    """Return half the sum of absolute differences of fractions [..., n].

    It is the smallest fraction that has to move for the two to agree: Levin, Peres & Wilmer, Markov
    Chains and Mixing Times, proposition 4.2. Example: [0.5, 0.5] and [0.9, 0.1] give 0.4.
    """
    return np.asarray(np.abs(first - second).sum(axis=-1) / 2)


def earth_mover(first: Fractions, second: Fractions) -> Fractions:
    """Return the earth mover's distance of histograms [..., n] with equal bins from 0 to 1.

    It is the area between the distribution functions: Vallender, "Calculation of the Wasserstein
    distance between probability distributions on the line", Theory of Probability and its
    Applications 18, 1974. Example with four bins: if half of the pictures move by three bins, it is
    0.5 x 3/4.
    """
    return np.asarray(np.abs(np.cumsum(first - second, axis=-1)).sum(axis=-1) / first.shape[-1])


def permutation_p_value(before: Counts, now: Counts, distance: Distance) -> float:
    """Return the probability that a random split of all pictures is as far apart; never 0.

    The split has the sizes of the samples. The test is exact at any size and for any number of rare
    classes: Phipson & Smyth, "Permutation P-values should never be zero", Statistical Applications
    in Genetics and Molecular Biology 9, 2010. The random generator has a fixed seed: equal counts
    give equal p-values.
    """
    # numpy's generator takes less than 10**9 pictures. With so many, halving changes no decision.
    while before.sum() + now.sum() >= 10**9:
        before, now = before // 2, now // 2

    pooled, size = before + now, int(now.sum())
    observed = distance(before / before.sum(), now / size) - 1e-12  # ties count as as far apart
    generator, as_far = np.random.default_rng(0), 0
    for start in range(0, _PERMUTATIONS, _PERMUTATIONS_AT_ONCE):
        count = min(_PERMUTATIONS_AT_ONCE, _PERMUTATIONS - start)
        drawn = generator.multivariate_hypergeometric(pooled, size, count, method="marginals")
        distances = distance((pooled - drawn) / before.sum(), drawn / size)
        as_far += int(np.count_nonzero(distances >= observed))
    # The observed split is one of the possible ones: it counts in numerator and denominator.
    return (1 + as_far) / (1 + _PERMUTATIONS)


def _describe_classes(shift: DistributionShift, baseline: Baseline, now: LabelStats) -> str:
    size = f"{shift.distance:.1%} of the pictures would have to change class for the two to agree"
    if not shift.found:
        reason = _describe_no_shift(shift, f"{shift.limit:.0%}")
        return f"Class shares are as in {baseline.name}: {size}, {reason}."
    moved = ", ".join(
        f"{change.label} {change.before:.1%} → {change.now:.1%}"
        for change in _most_moved(baseline.labels, now)
    )

    return (
        f"Class shares differ from {baseline.name}: {size}, over the limit of {shift.limit:.0%}. "
        f"Most moved: {moved}."
    )


def _describe_confidence(shift: DistributionShift, baseline: Baseline, now: LabelStats) -> str:
    means = f"its mean was {baseline.labels.mean:.1%} and is {now.mean:.1%}"
    size = f"it moved by {100 * shift.distance:.1f} points"
    limit = f"{100 * shift.limit:.0f}"
    if shift.found:
        return (
            f"Confidence differs from {baseline.name}: {size}, over the limit of {limit}; {means}."
        )
    reason = _describe_no_shift(shift, limit)
    return f"Confidence is as in {baseline.name}: {size}, {reason}; {means}."


def _describe_no_shift(shift: DistributionShift, limit: str) -> str:
    if shift.chance is None:
        return f"under the limit of {limit}"
    return (
        f"over the limit of {limit}, but with so few pictures chance alone gives as much "
        f"in {shift.chance:.1%} of cases"
    )


@dataclass(frozen=True, slots=True)
class _Move:
    """Fraction of one label in the baseline and now."""

    label: str
    before: float
    now: float


def _most_moved(before: LabelStats, now: LabelStats) -> list[_Move]:
    changes = [
        _Move(
            label,
            before.labels.get(label, 0) / before.pictures,
            now.labels.get(label, 0) / now.pictures,
        )
        for label in {*before.labels, *now.labels}
    ]
    return sorted(changes, key=lambda change: (-abs(change.now - change.before), change.label))[
        :_MOVED
    ]


def _sort_by_label(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
