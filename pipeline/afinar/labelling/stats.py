"""What a labelling answered, in a few numbers, and whether the run before it answered differently.

Nobody knows how right an archive's labels are, but a classifier whose pictures have changed mostly shows it in how
often it says what, and in how sure it is: Rabanser, Günnemann & Lipton, "Failing Loudly: An Empirical Study of
Methods for Detecting Dataset Shift", NeurIPS 2019. A calibrated model's mean confidence even estimates its accuracy:
Guillory et al., "Predicting with Confidence on Unseen Distributions", ICCV 2021.

Said to drift is what differs by more than a stated limit and by more than chance explains. The population stability
index, the usual measure, is left out: it is infinite where a class is new, and its usual limits are a matter of
sample size (Yurdakul & Naranjo, "Statistical properties of the population stability index", Journal of Risk Model
Validation, 2020).
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

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]
Distance = Callable[[Shares, Shares], Shares]

BINS: Final = 20
"""Bins of a confidence histogram, of equal width from 0 to 1; each holds its lower edge, the last both."""

SHARES_LIMIT: Final = 0.10
"""Class shares drift when a tenth of the pictures would have to change class for the two runs to agree."""

CONFIDENCE_LIMIT: Final = 0.05
"""Confidence drifts when it moves by 0.05: where it was calibrated and fell, five points of accuracy went with it."""

# A share's 95 % interval of 100 pictures is ten points to either side: of fewer, a difference of the limit's size
# cannot be told from chance. Nor do pictures come one by one: a box of scans or a burst is alike for reasons of its
# own, of which a test that takes each picture for a draw of its own knows nothing.
ENOUGH: Final = 100

# Two tests a night at one in a thousand are less than one false alarm a year, and that only if every night's run is so
# small that chance reaches the limits at all.
CHANCE: Final = 0.001
_DRAWS: Final = 1999
_DRAWS_AT_ONCE: Final = 100  # of a thousand classes 0.8 MB
_MOVED = 5


@dataclass(frozen=True)
class Answers:
    """How often each class was the answer, how sure the model was (counts in BINS), and the sum of its confidence."""

    labels: dict[str, int] = field(default_factory=dict)
    histogram: tuple[int, ...] = (0,) * BINS
    score_sum: float = 0.0

    @property
    def pictures(self) -> int:
        """How many answers these are."""
        return sum(self.labels.values())

    @property
    def mean(self) -> float | None:
        """Mean confidence; None of no answers."""
        return self.score_sum / self.pictures if self.pictures else None

    def plus(self, other: Answers) -> Answers:
        """These and others."""
        bins = tuple(one + more for one, more in zip(self.histogram, other.histogram, strict=True))
        return Answers(
            _sorted(Counter(self.labels) + Counter(other.labels)),
            bins,
            self.score_sum + other.score_sum,
        )

    def minus(self, other: Answers) -> Answers:
        """These without others, as far as they are among these."""
        bins = tuple(
            max(one - less, 0) for one, less in zip(self.histogram, other.histogram, strict=True)
        )
        rest = max(self.score_sum - other.score_sum, 0.0)
        return Answers(_sorted(Counter(self.labels) - Counter(other.labels)), bins, rest)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, as a manifest keeps it."""
        return {
            "labels": self.labels,
            "histogram": list(self.histogram),
            "score_sum": round(self.score_sum, 6),
        }

    @classmethod
    def of_dict(cls, record: dict[str, Any]) -> Answers:
        """Back from `as_dict`."""
        return cls(record["labels"], tuple(record["histogram"]), record["score_sum"])


def answers_of(table: pa.Table) -> Answers:
    """Answers of predictions with the columns `label` (string) and `score` (float, 0 to 1)."""
    found = pc.value_counts(table.column("label")).to_pylist()
    scores = np.clip(table.column("score").to_numpy().astype(np.float64), 0.0, 1.0)
    histogram, _ = np.histogram(scores, bins=BINS, range=(0.0, 1.0))
    labels = Counter({one["values"]: one["counts"] for one in found})
    return Answers(_sorted(labels), tuple(histogram.tolist()), float(scores.sum()))


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with, and what that is called in a sentence."""

    answers: Answers
    words: str


@dataclass(frozen=True, kw_only=True)
class DistributionShift:
    """By how much two distributions differ. `chance`: how often chance alone gives as much, None under the limit."""

    distance: float
    limit: float
    chance: float | None
    found: bool


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A comparison of two runs. The shifts are None where there were too few pictures to compare."""

    drifted: bool
    pictures: int
    pictures_before: int = 0
    classes: DistributionShift | None = None
    confidence: DistributionShift | None = None
    mean: float | None = None
    mean_before: float | None = None
    sentences: list[str]


def drift(before: Baseline | None, now: Answers) -> Drift:
    """Compare a run's answers with those before it.

    Class shares by total variation, confidence by the earth mover's distance, both with a permutation test. Where the
    pictures are the same ones, asked of another model, the test errs on the quiet side.
    """
    if before is None or not now.pictures:
        sentence = "Nothing was labelled, so there is nothing to compare."
        if now.pictures:
            sentence = "There is nothing to compare with: this is the first run of this source into this folder."
        return Drift(drifted=False, pictures=now.pictures, mean=now.mean, sentences=[sentence])
    then = before.answers
    few = f"Not compared with {before.words}: of fewer than {ENOUGH} pictures on either side nothing can be said."
    unknown = Drift(
        drifted=False, pictures=now.pictures, pictures_before=then.pictures, mean=now.mean, mean_before=then.mean,
        sentences=[few],
    )  # fmt: skip
    if min(now.pictures, then.pictures) < ENOUGH:
        return unknown
    names = sorted({*then.labels, *now.labels})
    shares = [
        np.array([one.labels.get(name, 0) for name in names], np.int64) for one in (then, now)
    ]
    bins = [np.array(one.histogram, np.int64) for one in (then, now)]
    classes = shift(shares[0], shares[1], total_variation, SHARES_LIMIT)
    confidence = shift(bins[0], bins[1], earth_mover, CONFIDENCE_LIMIT)
    sentences = [_of_classes(classes, before, now), _of_confidence(confidence, before, now)]
    return replace(
        unknown,
        drifted=classes.found or confidence.found,
        classes=classes,
        confidence=confidence,
        sentences=sentences,
    )


def shift(before: Counts, now: Counts, distance: Distance, limit: float) -> DistributionShift:
    """How far apart two histograms int64 [n] over the same bins are; found if over the limit and not by chance."""
    far = float(distance(before / before.sum(), now / now.sum()))
    chance = permutation_p_value(before, now, distance) if far >= limit else None
    return DistributionShift(
        distance=round(far, 4), limit=limit, chance=chance, found=chance is not None and chance < CHANCE
    )  # fmt: skip


def total_variation(one: Shares, other: Shares) -> Shares:
    """Half the sum of differences of shares [..., n]: the least part that has to move for the two to agree.

    Levin, Peres & Wilmer, Markov Chains and Mixing Times, proposition 4.2.
    """
    return np.asarray(np.abs(one - other).sum(axis=-1) / 2)


def earth_mover(one: Shares, other: Shares) -> Shares:
    """How far confidence has to move on average, for histograms [..., n] of equal bins from 0 to 1.

    The area between the distribution functions: Vallender, "Calculation of the Wasserstein distance between probability
    distributions on the line", Theory of Probability and its Applications 18, 1974.
    """
    return np.asarray(np.abs(np.cumsum(one - other, axis=-1)).sum(axis=-1) / one.shape[-1])


def permutation_p_value(before: Counts, now: Counts, distance: Distance) -> float:
    """How often two random halves of the same pictures, of these sizes, differ by as much; never zero.

    A permutation test, exact at any size and for any number of rare classes: Phipson & Smyth, "Permutation P-values
    should never be zero", Statistical Applications in Genetics and Molecular Biology 9, 2010. The same counts give the
    same answer.
    """
    while (
        before.sum() + now.sum() >= 10**9
    ):  # numpy draws from fewer; of so many, chance explains nothing anyway
        before, now = before // 2, now // 2
    pooled, size = before + now, int(now.sum())
    far = distance(before / before.sum(), now / size) - 1e-12
    generator, as_far = np.random.default_rng(0), 0
    for done in range(0, _DRAWS, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, _DRAWS - done)
        drawn = generator.multivariate_hypergeometric(pooled, size, count, method="marginals")
        as_far += int(
            np.count_nonzero(distance((pooled - drawn) / before.sum(), drawn / size) >= far)
        )
    return (1 + as_far) / (1 + _DRAWS)


def _of_classes(found: DistributionShift, before: Baseline, now: Answers) -> str:
    what = f"{found.distance:.1%} of the pictures would have to change class for the two to agree"
    if not found.found:
        return (
            f"Class shares are as in {before.words}: {what}, {_quiet(found, f'{found.limit:.0%}')}."
        )
    moved = ", ".join(
        f"{name} {then:.1%} → {share:.1%}" for name, then, share in _most_moved(before.answers, now)
    )
    return f"Class shares differ from {before.words}: {what}, over the limit of {found.limit:.0%}. Most moved: {moved}."


def _of_confidence(found: DistributionShift, before: Baseline, now: Answers) -> str:
    means = f"its mean was {before.answers.mean:.1%} and is {now.mean:.1%}"
    what = f"it moved by {100 * found.distance:.1f} points, "
    limit = f"{100 * found.limit:.0f}"
    if found.found:
        return f"Confidence differs from {before.words}: {what}over the limit of {limit}; {means}."
    return f"Confidence is as in {before.words}: {what}{_quiet(found, limit)}; {means}."


def _quiet(found: DistributionShift, limit: str) -> str:
    if found.chance is None:
        return f"under the limit of {limit}"
    return f"over the limit of {limit}, but with so few pictures chance alone gives as much in {found.chance:.1%} of cases"


def _most_moved(before: Answers, now: Answers) -> list[tuple[str, float, float]]:
    names = {*before.labels, *now.labels}
    rows = [
        (name, before.labels.get(name, 0) / before.pictures, now.labels.get(name, 0) / now.pictures)
        for name in names
    ]
    return sorted(rows, key=lambda row: (-abs(row[2] - row[1]), row[0]))[:_MOVED]


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
