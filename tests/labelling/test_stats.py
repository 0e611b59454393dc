"""Statistics of labels: a drift is found if there is one, and only then."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afinar.labelling.stats import (
    BINS,
    CLASSES_LIMIT,
    MIN_PICTURES,
    SIGNIFICANCE_LEVEL,
    Baseline,
    Drift,
    LabelStats,
    count_labels,
    detect_drift,
    earth_mover,
    permutation_p_value,
    total_variation,
)

SEEDS = st.integers(0, 2**32 - 1)


def sample(seed: int, pictures: int, fractions: list[float], confidence: float = 8.0) -> LabelStats:
    """Statistics of a model that predicts class n with probability fractions[n].

    Its scores are distributed as beta(confidence, 1).
    """
    generator = np.random.default_rng(seed)
    names = [f"class {number}" for number in range(len(fractions))]
    labels = generator.choice(names, pictures, p=fractions)
    scores = generator.beta(confidence, 1.0, pictures).astype(np.float32)
    return count_labels(pa.table({"label": labels, "score": scores}))


def compare(before: LabelStats, now: LabelStats) -> Drift:
    return detect_drift(Baseline(before, "the previous run"), now)


def test_predictions_are_counted_by_label_and_score() -> None:
    scores = pa.array([1.0, 0.0, 0.51, 0.5], pa.float32())
    table = pa.table({"label": ["b", "a", "b", "b"], "score": scores})
    stats = count_labels(table)
    assert stats.labels == {"a": 1, "b": 3}
    bins = [place for place, count in enumerate(stats.histogram) for _ in range(count)]
    assert bins == [0, 10, 10, BINS - 1]
    assert stats.mean == pytest.approx(2.01 / 4)
    assert LabelStats.from_dict(stats.as_dict()).as_dict() == stats.as_dict()
    assert count_labels(table.slice(0, 0)) == LabelStats()
    assert LabelStats().mean is None


@given(SEEDS, st.integers(0, 40), st.integers(0, 40))
def test_statistics_are_added_and_subtracted_the_first_remain(
    seed: int, first_size: int, second_size: int
) -> None:
    first = sample(seed, first_size, [0.5, 0.3, 0.2])
    second = sample(seed + 1, second_size, [0.1, 0.9])
    both = first.plus(second)
    assert both.pictures == first_size + second_size == sum(both.histogram)
    remaining = both.minus(second)
    assert (remaining.labels, remaining.histogram) == (first.labels, first.histogram)
    assert remaining.score_sum == pytest.approx(first.score_sum)
    assert first.minus(both).pictures == 0


# One false alarm in a thousand small runs is by design: hence no random examples.
@given(SEEDS, st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 40))
@settings(max_examples=60, derandomize=True)
def test_both_runs_have_one_distribution_no_drift_is_found(
    seed: int, before: int, now: int, classes: int
) -> None:
    fractions = np.random.default_rng(seed).dirichlet(np.ones(classes)).tolist()
    drift = compare(sample(seed, before, fractions), sample(seed + 1, now, fractions))
    assert not drift.drifted, drift.sentences
    assert (drift.classes is None) == (min(before, now) < MIN_PICTURES)


def test_p_values_of_equal_distributions_are_uniform() -> None:
    """Check that about 30 of 300 pairs of runs have a p-value below 0.1, as an exact test gives."""
    below = 0
    for seed in range(300):
        first, second = (
            np.bincount(np.random.default_rng(2 * seed + more).integers(0, 6, 120))
            for more in (0, 1)
        )
        below += permutation_p_value(first, second, total_variation) < 0.1
    assert 10 <= below <= 50, "30 expected; these bounds are four standard deviations"


@given(SEEDS, st.integers(1000, 20_000), st.floats(0.25, 0.5))
@settings(max_examples=40)
def test_class_fractions_change_drift_of_classes_is_found(
    seed: int, pictures: int, change: float
) -> None:
    drift = compare(
        sample(seed, 5000, [0.6, 0.3, 0.1]),
        sample(seed + 1, pictures, [0.6 - change, 0.3, 0.1 + change]),
    )
    assert drift.drifted
    assert drift.classes is not None
    assert drift.classes.found
    assert drift.classes.distance == pytest.approx(change, abs=0.09)
    assert drift.confidence is not None
    assert not drift.confidence.found
    assert "Most moved: class" in drift.sentences[0]
    assert "Confidence is as in the previous run" in drift.sentences[1]


@given(SEEDS)
@settings(max_examples=20)
def test_scores_fall_drift_of_confidence_is_found(seed: int) -> None:
    drift = compare(sample(seed, 4000, [0.5, 0.5], 8.0), sample(seed + 1, 4000, [0.5, 0.5], 3.0))
    assert drift.drifted
    assert drift.confidence is not None
    assert drift.confidence.found
    assert drift.classes is not None
    assert not drift.classes.found
    # The difference of the means.
    assert drift.confidence.distance == pytest.approx(8 / 9 - 3 / 4, abs=0.03)


@given(SEEDS, st.integers(0, MIN_PICTURES - 1), st.integers(1, 100_000))
def test_one_run_is_small_runs_are_not_compared(seed: int, few: int, many: int) -> None:
    small, large = sample(seed, few, [1.0]), sample(seed, many, [0.0, 1.0], 1.0)
    for before, now in ((small, large), (large, small)):
        drift = compare(before, now)
        assert not drift.drifted
        assert drift.classes is None
        assert drift.confidence is None


def test_distance_is_over_the_limit_by_chance_no_drift_is_found() -> None:
    before = LabelStats({"a": 50, "b": 50}, (0,) * 19 + (100,), 97.0)
    now = LabelStats({"a": 62, "b": 38}, (0,) * 19 + (100,), 97.0)
    drift = compare(before, now)
    assert drift.classes is not None
    assert drift.classes.distance == 0.12 > CLASSES_LIMIT
    assert drift.classes.chance is not None
    assert drift.classes.chance > SIGNIFICANCE_LEVEL
    assert not drift.drifted
    assert "chance alone" in drift.sentences[0]


def test_class_is_new_distance_is_finite() -> None:
    drift = compare(sample(0, 2000, [1.0]), sample(1, 2000, [0.5, 0.5]))
    assert drift.classes is not None
    assert drift.classes.distance == pytest.approx(0.5, abs=0.05)
    assert "class 1 0.0% → " in drift.sentences[0]


def test_distances_follow_their_definitions() -> None:
    first, second = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.0, 0.5, 0.0, 0.5])
    assert total_variation(first, second) == 0.5
    # Half of the pictures move by three bins of width 1/4.
    assert earth_mover(first, second) == pytest.approx(0.5 * 3 / 4)
    pairs = earth_mover(np.stack([first, first]), np.stack([second, first]))
    assert pairs.tolist() == [pytest.approx(0.375), 0.0]


def test_counts_exceed_the_random_generators_limit_p_value_is_small() -> None:
    huge = np.array([10**9, 2 * 10**9])
    assert permutation_p_value(huge, huge[::-1], total_variation) <= SIGNIFICANCE_LEVEL
