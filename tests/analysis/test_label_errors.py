"""Wrong labels by confident learning, on scikit-learn's digits with planted errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from afinar.analysis.label_errors import (
    FOLDS,
    assign_folds,
    estimated_joint,
    out_of_fold,
    score_labels,
)
from afinar.errors import ShortfallError


def planted(samples: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return features and labels of digits of which 5 % are wrong, and which ones."""
    values, targets = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(targets))[:samples]
    values, targets = values[chosen].astype(np.float32), targets[chosen].astype(np.int64)
    is_wrong = np.zeros(samples, dtype=bool)
    is_wrong[rng.choice(samples, samples // 20, replace=False)] = True
    targets[is_wrong] = (targets[is_wrong] + rng.integers(1, 10, is_wrong.sum())) % 10
    return values, targets, is_wrong


def test_planted_errors_are_first_in_the_ranking() -> None:
    values, targets, is_wrong = planted(900)
    done: list[int] = []
    probabilities = out_of_fold(values, targets, np.arange(900), 10, done.append)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert sum(done) == 900
    scores = score_labels(probabilities, targets)
    assert (scores.predicted == targets)[~is_wrong].mean() > 0.9
    assert is_wrong[scores.ranking[:90]].sum() >= 0.8 * is_wrong.sum()
    # The estimate of the number of wrong labels is near the truth, and most flagged ones are.
    assert 0.5 * is_wrong.sum() < scores.is_flagged.sum() < 2 * is_wrong.sum()
    assert is_wrong[scores.is_flagged].mean() > 0.5


def test_a_picture_is_never_predicted_by_a_head_that_has_seen_it_or_its_copy() -> None:
    rng = np.random.default_rng(0)
    # Random features: only a head that has seen a sample, or its copy, can predict its label.
    values = np.repeat(rng.normal(size=(150, 400)).astype(np.float32), 2, axis=0)
    targets = np.repeat(rng.integers(0, 3, 150), 2)
    groups = np.repeat(np.arange(150), 2)
    apart = score_labels(out_of_fold(values, targets, groups, 3), targets)
    assert (apart.predicted == targets).mean() < 0.5
    mixed = score_labels(out_of_fold(values, targets, np.arange(300), 3), targets)
    assert (mixed.predicted == targets).mean() > 0.9


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=80))
def test_folds_keep_groups_together_and_spread_each_class(rows: list[tuple[int, int]]) -> None:
    groups = np.array([group for _, group in rows])
    targets = groups % 4  # a group has one class
    folds = assign_folds(targets, groups)
    for group in set(groups.tolist()):
        assert len(set(folds[groups == group].tolist())) == 1
    for target in set(targets.tolist()):
        of_class = {(int(g), int(f)) for g, f in zip(groups, folds, strict=True) if g % 4 == target}
        counts = np.bincount([fold for _, fold in of_class], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1


def test_joint_is_scaled_to_the_number_of_labels() -> None:
    # 60 of 100 cats reach the threshold of cat, 20 that of dog, 20 none.
    cats = np.array([[0.9, 0.1]] * 60 + [[0.2, 0.8]] * 20 + [[0.55, 0.45]] * 20, dtype=np.float32)
    dogs = np.array([[0.3, 0.7]] * 50, dtype=np.float32)
    targets = np.array([0] * 100 + [1] * 50)
    joint = estimated_joint(np.concatenate([cats, dogs]), targets)
    assert joint.tolist() == [[0, 25], [0, 0]]
    flagged = score_labels(np.concatenate([cats, dogs]), targets).is_flagged
    # 25 are estimated; of these, five have cat as their most probable class.
    assert np.flatnonzero(flagged).tolist() == list(range(60, 80))


def test_margin_ranks_confident_mistakes_first() -> None:
    probabilities = np.array(
        [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]], dtype=np.float32
    )
    scores = score_labels(probabilities, np.array([0, 0, 1]))
    assert scores.ranking.tolist() == [1, 2, 0]
    np.testing.assert_allclose(scores.margin, [-0.2, 0.7, 0.05], atol=1e-6)
    assert scores.other.tolist() == [1, 1, 0]


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ShortfallError, match="too few"):
        out_of_fold(np.ones((1, 4), np.float32), np.zeros(1, np.int64), np.zeros(1, np.int64), 2)
