"""Estimates from a test split with their 95 % intervals, confusion counts and calibration."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Z95: Final = 1.959963984540054  # two-sided 95 % point of the normal distribution


# Quantiles 0.975 of Student's t for 1 to 19 degrees of freedom.
_T_975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: int, trials: int) -> Interval:
    """Return hits / trials with its score interval.

    Wilson 1927, doi 10.1080/01621459.1927.10502953. It stays within 0 and 1 and has a width even
    without hits: 0 of 20 gives 0 to 0.161.
    """
    share = hits / trials
    spread = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    centre = share + Z95**2 / (2 * trials)
    scale = 1 + Z95**2 / trials
    return Interval(share, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def half_interval(values: list[float]) -> float | None:
    """Return half the length of the 95 % interval of the mean of 2 to 20 values."""
    if len(values) < 2:
        return None
    return float(_T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values)))


def binomial_tail(hits: int, trials: int, rate: float) -> float:
    """Return the probability of at least `hits` of `trials`, each a hit with probability `rate`."""
    if hits <= 0 or rate >= 1:
        return 1.0
    if rate <= 0:
        return 0.0
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    terms = (
        _log_choose(trials, k) + k * log_rate + (trials - k) * log_rest
        for k in range(hits, trials + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Interval:
    """Return accuracy of `first` minus accuracy of `second` on the same samples.

    Both are bool [n], True for a correct prediction. The interval is the adjusted Wald interval of
    Agresti and Min 2005, doi 10.1002/sim.1781: half a sample is added to each of the four cells
    (both correct, only the first, only the second, none). Samples that both get right or wrong
    carry no information on the difference, so the interval is narrower than that of two independent
    test splits.

    Example: of 200 samples 30 are correct only for `first` and 10 only for `second`. The difference
    is 0.1, its interval 0.04 to 0.16.
    """
    samples = len(first)
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())

    b, c, n = only_first + 0.5, only_second + 0.5, samples + 2
    centre = (b - c) / n
    spread = Z95 * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    return Interval((only_first - only_second) / samples, centre - spread, centre + spread)


def confusion(labels: list[str], predicted: list[str], classes: list[str]) -> NDArray[np.int64]:
    """Return sample counts int64 [classes, classes]; rows are true classes, columns predicted."""
    numbers = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for label, prediction in zip(labels, predicted, strict=True):
        counts[numbers[label], numbers[prediction]] += 1
    return counts


@dataclass(frozen=True)
class ConfidenceBin:
    """Predictions with confidence in one interval; `hits` of them are correct."""

    samples: int
    confidence: float
    hits: int

    @property
    def gap(self) -> float:
        """Confidence minus accuracy; positive if the model is overconfident."""
        return self.confidence - self.hits / self.samples


def reliability(
    scores: NDArray[np.floating[Any]], hits: NDArray[np.bool_], bins: int = 15
) -> list[ConfidenceBin]:
    """Group predictions by confidence into `bins` equal intervals (a, b]; leave out empty ones.

    `scores` are probabilities of the predicted classes (Guo et al. 2017, arXiv 1706.04599).
    """
    scores = scores.astype(np.float64)
    bin_of_score = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], scores)
    members = [bin_of_score == number for number in range(bins)]

    return [
        ConfidenceBin(
            samples=int(member.sum()),
            confidence=float(scores[member].mean()),
            hits=int(hits[member].sum()),
        )
        for member in members
        if member.any()
    ]


def calibration_error(bins: list[ConfidenceBin]) -> float:
    """Return the expected calibration error: the mean over samples of |gap| of their bin."""
    samples = sum(group.samples for group in bins)
    return sum(group.samples * abs(group.gap) for group in bins) / samples
