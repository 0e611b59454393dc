"""Comparison of tonight with earlier nights: labels and pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, mannwhitneyu

from afinar.evaluation.intervals import Interval, binomial_tail
from afinar.evaluation.watch import (
    Contradictions,
    auc,
    count_contradictions,
    watch_inputs,
    watch_labels,
)

USUAL = {
    "class cat": Contradictions(confident=1000, contradicted=10),
    "class dog": Contradictions(confident=500, contradicted=100),
}


def test_contradictions_of_a_confident_champion_are_counted() -> None:
    counts = count_contradictions(
        ["a", "a", "a", "b"], ["cat", "cat", "dog", "dog"], ["cat", "dog", "cat", "cat"],
        [0.95, 0.99, 0.5, 0.9],
    )  # fmt: skip

    assert counts == {
        "a": Contradictions(confident=2, contradicted=1),
        "b": Contradictions(confident=1, contradicted=1),
    }


def test_mislabelled_uploads_are_reported_and_usual_ones_are_not() -> None:
    alarms = watch_labels(
        {
            "class cat": Contradictions(confident=30, contradicted=9),
            "class dog": Contradictions(confident=30, contradicted=9),  # usual for dogs
            "folder new": Contradictions(confident=5, contradicted=5),  # too few
        },
        USUAL,
    )

    assert [alarm.group for alarm in alarms] == ["class cat"]
    assert alarms[0].usual == pytest.approx(11 / 1002)
    assert "9 of 30 labels" in alarms[0].sentence


def test_a_new_folder_is_compared_with_all_others() -> None:
    tonight = {"folder new": Contradictions(confident=40, contradicted=30)}

    (alarm,) = watch_labels(tonight, USUAL)

    assert alarm.usual == pytest.approx(111 / 1502)


def test_a_first_night_can_raise_an_alarm_only_over_a_half() -> None:
    assert not watch_labels({"class cat": Contradictions(confident=50, contradicted=25)}, {})
    assert watch_labels({"class cat": Contradictions(confident=50, contradicted=45)}, {})


def test_false_alarms_are_rare() -> None:
    rng = np.random.default_rng(0)
    usual = {f"class {name}": Contradictions(confident=2000, contradicted=60) for name in "abcdef"}
    nights = 0
    for _ in range(500):
        tonight = {
            name: Contradictions(confident=50, contradicted=int(rng.binomial(50, 0.03)))
            for name in usual
        }
        nights += bool(watch_labels(tonight, usual))

    assert nights <= 3


@given(trials=st.integers(0, 200), hits=st.integers(0, 200), rate=st.floats(0.001, 0.999))
def test_the_binomial_tail_is_exact(trials: int, hits: int, rate: float) -> None:
    if hits > trials or trials == 0:
        return
    expected = binomtest(hits, trials, rate, alternative="greater").pvalue
    assert binomial_tail(hits, trials, rate) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_auc_is_the_statistic_of_mann_and_whitney() -> None:
    rng = np.random.default_rng(0)
    earlier, tonight = rng.integers(0, 20, 80), rng.integers(5, 25, 50)

    result = auc(earlier.astype(float), tonight.astype(float))

    expected = mannwhitneyu(tonight, earlier).statistic / (80 * 50)
    assert result.value == pytest.approx(expected)
    assert result.low < result.value < result.high


def test_the_interval_of_the_auc_covers_it() -> None:
    rng = np.random.default_rng(0)
    results = [auc(rng.normal(size=60), rng.normal(0.5, 1, 40)) for _ in range(300)]

    covered = np.mean([result.low <= 0.638 <= result.high for result in results])  # Φ(0.5 / √2)
    assert 0.90 <= covered <= 0.99


@pytest.mark.parametrize(
    ("separation", "expected", "alarm"),
    [
        (Interval(0.8, 0.7, 0.9), 0.80, True),
        (Interval(0.8, 0.7, 0.9), 0.94, False),  # foreign and not harder: a note
        (Interval(0.6, 0.5, 0.7), 0.80, False),  # harder and not foreign: chance
        (Interval(0.8, 0.7, 0.9), None, False),
        (None, 0.5, False),
    ],
)
def test_only_foreign_and_harder_pictures_raise_an_alarm(
    separation: Interval | None, expected: float | None, *, alarm: bool
) -> None:
    watch = watch_inputs(separation, expected, 0.95)

    assert watch.alarm is alarm
    assert watch.sentences
