"""Paired tests and intervals over seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar.evaluation.intervals import wilson
from afinar.evaluation.paired import (
    accuracy_interval,
    bootstrap_interval,
    holm,
    paired_p_value,
)


def hits(correct: int, samples: int) -> np.ndarray:
    return np.arange(samples) < correct


def test_holm_of_the_example() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    for plain, corrected in zip(p_values, holm(p_values), strict=True):
        assert plain <= corrected <= 1
    smallest = min(range(len(p_values)), key=p_values.__getitem__)
    assert holm(p_values)[smallest] == pytest.approx(min(1.0, len(p_values) * p_values[smallest]))


def test_exact_mcnemar() -> None:
    """Nine pictures that only the first gets right, one that only the second gets: 22 / 1024."""
    first = np.array([True] * 9 + [False] + [True] * 90)
    second = np.array([False] * 9 + [True] + [True] * 90)
    assert paired_p_value([first], [second]) == pytest.approx(22 / 1024)
    assert paired_p_value([first], [first]) == 1


def test_seeds_add_to_the_uncertainty() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(2000) < 0.9
    steady = [base, base]
    better = [base | (rng.random(2000) < 0.3), base | (rng.random(2000) < 0.3)]
    assert paired_p_value(better, steady) < 1e-6
    unsteady = [np.ones(2000, bool), rng.random(2000) < 0.8]
    assert paired_p_value(unsteady, steady) > 0.5


def test_interval_of_one_seed_is_wilson_and_that_of_several_is_wider() -> None:
    assert accuracy_interval([hits(90, 100)]) == wilson(90, 100)
    several = accuracy_interval([hits(80, 100), hits(90, 100), hits(100, 100)])
    assert several.value == pytest.approx(0.9)
    assert several.low < wilson(90, 100).low and several.high > wilson(90, 100).high


def test_bootstrap_interval_of_an_accuracy_is_close_to_wilson() -> None:
    correct = hits(900, 1000)
    interval = bootstrap_interval(0.9, 1000, lambda rows: float(correct[rows].mean()), 0.0)
    expected = wilson(900, 1000)
    assert interval.low == pytest.approx(expected.low, abs=0.005)
    assert interval.high == pytest.approx(expected.high, abs=0.005)
