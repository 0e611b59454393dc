"""Compare tonight's labels and pictures with those of earlier nights.

**Labels.** A confident champion is rarely wrong. If it contradicts many of tonight's new labels of
one class or one folder, those labels are probably wrong. The rate of contradiction is compared with
the rate of earlier nights by an exact binomial test.

**Pictures.** A linear classifier tries to tell tonight's pictures from earlier ones by their
features. Its out-of-fold AUC is 0.5 if it cannot (classifier two-sample test: Lopez-Paz and Oquab
2017, arXiv 1610.06545). Different pictures are not worse pictures: an alarm is raised only if the
expected accuracy, which is the mean of the champion's calibrated top probabilities, falls too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afinar.evaluation.intervals import Z95, Interval, binomial_tail

CONFIDENT: Final = 0.9
"""Probability from which a champion's answer counts as a contradiction of another label."""

_LEVEL: Final = 0.001  # of the test of one night, divided among its groups
_EXCESS: Final = 0.10  # smallest excess over the usual rate that is reported
_MIN_CONFIDENT: Final = 10  # smallest number of confident answers of a group
_AUC_LIMIT: Final = 0.55
_ACCURACY_FALL: Final = 0.03  # of the expected accuracy


@dataclass(frozen=True, kw_only=True)
class Contradictions:
    """Labels of a group that a confident champion contradicts, of those it is confident about."""

    confident: int
    contradicted: int

    @property
    def rate(self) -> float:
        """Share of the confident answers."""
        return self.contradicted / self.confident if self.confident else 0.0

    def plus(self, other: Contradictions) -> Contradictions:
        """Return the sum of two counts."""
        return Contradictions(
            confident=self.confident + other.confident,
            contradicted=self.contradicted + other.contradicted,
        )


@dataclass(frozen=True, kw_only=True)
class LabelAlarm:
    """A class or a folder whose labels of tonight are contradicted more often than usual.

    `group` is such as `class cat` or `folder uploads/2026-11-26`. `usual` is the expected rate.
    """

    group: str
    tonight: Contradictions
    usual: float
    p_value: float

    @property
    def sentence(self) -> str:
        """The alarm as text."""
        return (
            f"{self.group}: the champion contradicts {self.tonight.contradicted} of "
            f"{self.tonight.confident} labels that it is sure about ({self.tonight.rate:.0%}, "
            f"usually {self.usual:.0%}, p = {self.p_value:.1g})"
        )


def count_contradictions(
    groups: Iterable[str],
    labels: Iterable[str],
    predicted: Iterable[str],
    scores: Iterable[float],
) -> dict[str, Contradictions]:
    """Return the counts of each group; all arguments have one item per picture."""
    counts: dict[str, Contradictions] = {}
    for group, label, prediction, score in zip(groups, labels, predicted, scores, strict=True):
        if score < CONFIDENT:
            continue
        one = Contradictions(confident=1, contradicted=int(label != prediction))
        counts[group] = one.plus(counts.get(group, Contradictions(confident=0, contradicted=0)))
    return counts


def watch_labels(
    tonight: Mapping[str, Contradictions],
    usual: Mapping[str, Contradictions],
    overall: Contradictions | None = None,
) -> list[LabelAlarm]:
    """Return the groups whose labels are contradicted more often than usual, the worst first.

    `usual` has the counts of earlier nights, and of the champion's own test pictures. A group
    without any is compared with `overall`, by default the sum of all groups. One contradiction of
    two imagined answers is added to what is usual, so that a history without contradictions does
    not make the first one an alarm.

    Example: usually 10 of 1,000 answers contradict, a rate of 1.1 %. Tonight 9 of 30 do: 29 points
    more, and the probability of 9 or more by chance is 3e-11. That is an alarm.
    """
    total = overall or add_up(usual.values())
    alarms = []
    for group, count in tonight.items():
        before = usual.get(group, total)
        rate = (before.contradicted + 1) / (before.confident + 2)
        p_value = binomial_tail(count.contradicted, count.confident, rate)
        is_certain = p_value <= _LEVEL / len(tonight)
        if count.confident >= _MIN_CONFIDENT and count.rate > rate + _EXCESS and is_certain:
            alarms.append(LabelAlarm(group=group, tonight=count, usual=rate, p_value=p_value))
    return sorted(alarms, key=lambda alarm: (alarm.p_value, alarm.group))


def add_up(counts: Iterable[Contradictions]) -> Contradictions:
    """Return the sum of counts."""
    total = Contradictions(confident=0, contradicted=0)
    for count in counts:
        total = total.plus(count)
    return total


@dataclass(frozen=True, kw_only=True)
class Rejects:
    """Pictures that could not be used, of those that were read."""

    read: int
    rejected: int


def watch_rejects(tonight: Rejects, usual: Rejects) -> str:
    """Return a sentence if far more pictures than usual were rejected, otherwise an empty text.

    The limits are those of `watch_labels`. Example: usually 5 of 1,000, tonight 12 of 40.
    """
    if tonight.read < _MIN_CONFIDENT:
        return ""
    rate, expected = tonight.rejected / tonight.read, (usual.rejected + 1) / (usual.read + 2)
    p_value = binomial_tail(tonight.rejected, tonight.read, expected)
    if rate <= expected + _EXCESS or p_value > _LEVEL:
        return ""
    return (
        f"{tonight.rejected} of {tonight.read} new pictures were rejected ({rate:.0%}, usually "
        f"{expected:.1%}, p = {p_value:.1g})"
    )


def auc(earlier: NDArray[np.floating], tonight: NDArray[np.floating]) -> Interval:
    """Return the probability that a score of `tonight` exceeds one of `earlier`, with its interval.

    Ties count half. The interval is that of Hanley and McNeil 1982, doi
    10.1148/radiology.143.1.7063747.
    """
    n, m = len(earlier), len(tonight)
    ranks = _mid_ranks(np.concatenate([earlier, tonight]))
    value = float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))

    both, only = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (m - 1) * (both - value**2) + (n - 1) * (only - value**2)
    spread = Z95 * math.sqrt(max(variance, 0.0) / (n * m))
    return Interval(value, max(0.0, value - spread), min(1.0, value + spread))


@dataclass(frozen=True, kw_only=True)
class InputWatch:
    """Tonight's pictures against earlier ones. `alarm`: they are foreign and harder."""

    alarm: bool
    sentences: list[str]


def watch_inputs(
    separation: Interval | None, expected: float | None, usual_expected: float | None
) -> InputWatch:
    """Judge tonight's pictures by the AUC of the classifier and by expected accuracies.

    None stands for too few pictures. `expected` is tonight's mean calibrated top probability,
    `usual_expected` that of earlier nights.
    """
    if separation is None:
        return InputWatch(alarm=False, sentences=["too few pictures are new to compare them"])
    is_foreign = separation.low > _AUC_LIMIT
    sentences = [
        f"a linear classifier tells tonight's pictures from earlier ones with an AUC of "
        f"{separation.value:.2f} (95 % interval {separation.low:.2f} to {separation.high:.2f})"
    ]
    if expected is None or usual_expected is None:
        return InputWatch(alarm=False, sentences=sentences)

    falls = usual_expected - expected > _ACCURACY_FALL
    sentences.append(
        f"the champion expects to be right for {expected:.1%} of them, usually for "
        f"{usual_expected:.1%}"
    )
    return InputWatch(alarm=is_foreign and falls, sentences=sentences)


def _mid_ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
