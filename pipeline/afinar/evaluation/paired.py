"""Tests of differences between several rows on one test split, and intervals over seeds: pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afinar.evaluation.intervals import (
    Z95,
    Interval,
    half_interval,
    paired_difference,
    wilson,
)

_RESAMPLES: Final = 400


def accuracy_interval(hits: Sequence[NDArray[np.bool_]]) -> Interval:
    """Return the mean accuracy of seeds with its 95 % interval over pictures and seeds.

    `hits` has bool [n] for each seed. The half lengths of the Wilson interval over pictures and of
    Student's interval over seeds are added in squares.
    """
    accuracies = [float(of_seed.mean()) for of_seed in hits]
    mean, samples = statistics.fmean(accuracies), len(hits[0])
    pictures = wilson(round(mean * samples), samples)
    of_seeds = half_of_seeds(accuracies)
    below, above = mean - pictures.low, pictures.high - mean
    return Interval(
        mean,
        max(0.0, mean - math.hypot(below, of_seeds)),
        min(1.0, mean + math.hypot(above, of_seeds)),
    )


def half_of_seeds(values: Sequence[float]) -> float:
    """Return half the length of Student's 95 % interval of the mean; 0 for a single value."""
    return half_interval(list(values)) or 0.0


def bootstrap_interval(
    value: float, samples: int, statistic: Callable[[NDArray[np.int64]], float], of_seeds: float
) -> Interval:
    """Return the 95 % interval of a statistic of a test split over pictures and seeds.

    `statistic` takes the positions of a resample, int64 [samples]. The draws are the same in every
    call. `of_seeds` is half the length of the interval over seeds, added in squares.
    """
    rng = np.random.default_rng(0)
    draws = [statistic(rng.integers(0, samples, samples)) for _ in range(_RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return Interval(
        value,
        max(0.0, value - math.hypot(max(0.0, value - low), of_seeds)),
        min(1.0, value + math.hypot(max(0.0, high - value), of_seeds)),
    )


def paired_p_value(
    first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]]
) -> float:
    """Return the two-sided p-value of "both are equally accurate" on the same pictures.

    Each argument has bool [n] for each seed. With one seed each it is the exact McNemar test: of
    the pictures that only one gets right, each is as likely one's as the other's. With several
    seeds the difference of the mean hits of each picture is compared with its standard error, to
    which the variance between seeds is added.
    """
    if len(first) == len(second) == 1:
        only_first = int((first[0] & ~second[0]).sum())
        only_second = int((second[0] & ~first[0]).sum())
        return _sign_test(only_first, only_second)

    mean, variance = _difference(first, second)
    if variance == 0:
        return 1.0 if mean == 0 else 0.0
    return math.erfc(abs(mean) / math.sqrt(2 * variance))


def paired_interval(
    first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]]
) -> Interval:
    """Return the accuracy of `first` minus that of `second` on the same pictures.

    The arguments are those of `paired_p_value`. The 95 % interval is over pictures, and over seeds
    where a row has several.
    """
    if len(first) == len(second) == 1:
        return paired_difference(first[0], second[0])
    mean, variance = _difference(first, second)
    half = Z95 * math.sqrt(variance)
    return Interval(mean, max(-1.0, mean - half), min(1.0, mean + half))


def _difference(
    first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]]
) -> tuple[float, float]:
    """Return the difference of two mean accuracies and its variance, over pictures and seeds."""
    means = [
        np.mean([of_seed.astype(np.float64) for of_seed in row], axis=0) for row in (first, second)
    ]
    difference = means[0] - means[1]
    variance = float(difference.var(ddof=1)) / len(difference)
    for row in (first, second):
        if len(row) > 1:
            accuracies = [float(of_seed.mean()) for of_seed in row]
            variance += statistics.variance(accuracies) / len(row)
    return float(difference.mean()), variance


def _sign_test(first: int, second: int) -> float:
    """Return the two-sided exact binomial p-value of so many wins each, at equal chances."""
    trials, least = first + second, min(first, second)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        for k in range(least + 1)
    ]
    tail = sum(math.exp(log - trials * math.log(2)) for log in logs)
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in their order (Holm 1979).

    Example: 0.01, 0.04, 0.03 give 0.03, 0.06, 0.06: the smallest is multiplied by 3, the next by 2,
    and none becomes smaller than one before it.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = largest
    return corrected
