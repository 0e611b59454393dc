"""What a test split says, and how sure one can be of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054  # the normal distribution's two-sided 95 % point


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: int, trials: int) -> Interval:
    """A share with its score interval (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    share = hits / trials
    spread = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    scale = 1 + Z95**2 / trials
    centre = share + Z95**2 / (2 * trials)
    return Interval(share, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def paired_difference(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Interval:
    """How much more often `one` is right than `other` on the same samples, with an adjusted Wald interval.

    Half a sample is added to each cell of the two-by-two table (Agresti and Min 2005, doi 10.1002/sim.1781).
    """
    count = len(one)
    only_one = int((one & ~other).sum())
    only_other = int((other & ~one).sum())
    difference = (only_one - only_other) / count
    b, c, n = only_one + 0.5, only_other + 0.5, count + 2
    spread = Z95 * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    centre = (b - c) / n
    return Interval(difference, centre - spread, centre + spread)


def confusion(labels: list[str], predicted: list[str], classes: list[str]) -> NDArray[np.int64]:
    """Counts [class, class]: rows are true classes, columns predicted ones."""
    numbers = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for label, guess in zip(labels, predicted, strict=True):
        counts[numbers[label], numbers[guess]] += 1
    return counts


@dataclass(frozen=True)
class ConfidenceBin:
    """Predictions whose confidence lies in one interval: how many, their mean confidence, and how many are right."""

    samples: int
    confidence: float
    hits: int

    @property
    def gap(self) -> float:
        """By how much confidence exceeds accuracy."""
        return self.confidence - self.hits / self.samples


def reliability(
    scores: NDArray[np.floating[Any]], hits: NDArray[np.bool_], bins: int = 15
) -> list[ConfidenceBin]:
    """Predictions by their confidence, in `bins` equal intervals (a, b], empty ones left out (Guo et al. 2017)."""
    scores = scores.astype(np.float64)
    places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], scores)
    return [
        ConfidenceBin(int(inside.sum()), float(scores[inside].mean()), int(hits[inside].sum()))
        for inside in (places == place for place in range(bins))
        if inside.any()
    ]


def calibration_error(bins: list[ConfidenceBin]) -> float:
    """The expected calibration error: the mean over samples of their bin's gap (Guo et al. 2017, arXiv 1706.04599)."""
    return sum(one.samples * abs(one.gap) for one in bins) / sum(one.samples for one in bins)
