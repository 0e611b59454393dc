"""Solved heads: equal to scikit-learn's solution, calibrated, and folded to plain features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from afinar.errors import ShortfallError
from afinar.training import linear_probe
from afinar.training.linear_probe import (
    Features,
    Objective,
    fit_head,
    refit_head,
    solve_head,
    solve_heads,
    solve_smooth,
    solve_standardised,
)


def clusters(seed: int, samples: int, width: int, classes: int, spread: float) -> Features:
    """Return non-negative features of very different scales, as those behind a ReLU."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (classes, width)) * spread
    targets = rng.integers(0, classes, samples)
    scales = np.random.default_rng(98).gamma(1, 5, width)
    values = np.maximum(0, rng.normal(0, 1, (samples, width)) + centres[targets]) * scales
    values[:, 0] = 7.0  # a constant feature
    return Features(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(targets))


SETS = [(400, 30, 2, 0.5), (300, 200, 5, 0.4), (150, 400, 3, 0.2)]


@pytest.mark.parametrize("size", SETS)
@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_fit_head_equals_logistic_regression_of_scikit_learn(
    size: tuple[int, int, int, float], c: float
) -> None:
    train, test = clusters(0, *size), clusters(1, *size)
    head = fit_head(train, Objective(size[2]), c)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000, tol=1e-8))
    reference.fit(train.values.double().numpy(), train.targets.numpy())
    expected = torch.from_numpy(reference.predict_log_proba(test.values.double().numpy()))
    computed = head.logits(test.values).log_softmax(dim=1)

    expected_loss, loss = (F.nll_loss(each, test.targets).item() for each in (expected, computed))
    assert loss == pytest.approx(expected_loss, rel=1e-3, abs=1e-4)
    same = (expected.argmax(dim=1) == computed.argmax(dim=1)).double().mean()
    assert same >= 0.998


def test_fit_head_weights_samples_by_class() -> None:
    train = clusters(0, 300, 20, 3, 0.5)
    weights = torch.tensor([5.0, 1.0, 1.0])
    head = fit_head(train, Objective(3, class_weights=weights), 0.1)
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight={0: 5.0, 1: 1.0, 2: 1.0}, tol=1e-8)
    )
    reference.fit(train.values.double().numpy(), train.targets.numpy())
    expected = torch.from_numpy(reference.predict_log_proba(train.values.double().numpy()))
    computed = head.logits(train.values).log_softmax(dim=1)
    torch.testing.assert_close(computed, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", SETS)
def test_solve_head_is_calibrated_and_no_worse_than_any_fixed_regularisation(
    size: tuple[int, int, int, float],
) -> None:
    train, validation = clusters(0, *size), clusters(1, *size)
    head = solve_head(train, validation, Objective(size[2]))
    solved = F.cross_entropy(head.logits(validation.values), validation.targets).item()
    for c in (1e-4, 1e-2, 1.0):
        fixed = fit_head(train, Objective(size[2]), c).logits(validation.values)
        assert solved <= F.cross_entropy(fixed, validation.targets).item() + 0.01

    logits = head.logits(validation.values)
    for factor in (0.8, 1.25):
        assert F.cross_entropy(logits * factor, validation.targets).item() >= solved - 0.01


def unequal(seed: int, samples: int) -> Features:
    """Return samples of three classes whose large features say more than the small ones."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, samples)
    centres = np.random.default_rng(99).normal(0, 1, (3, 60)) * np.geomspace(1.2, 0.01, 60)
    values = rng.normal(0, 1, (samples, 60)) + centres[targets]
    scales = np.geomspace(1, 0.01, 60)
    return Features(torch.from_numpy((values * scales).astype(np.float32)), torch.tensor(targets))


def test_solved_head_is_a_mean_where_the_size_of_features_tells() -> None:
    train, validation = unequal(0, 60), unequal(1, 60)
    head = solve_head(train, validation, Objective(3))
    assert [choice.power for choice in head.choices] == [0.0, 0.5]
    assert head.held_out == 60 + 60
    best, smooth = solve_heads(train, validation, Objective(3))
    assert best is smooth
    torch.testing.assert_close(head.weight, best.weight)
    parts = [
        fit_head(train, Objective(3), choice.c, choice.power).divided(choice.temperature)
        for choice in head.choices
    ]
    mean = torch.stack([part.logits(validation.values) for part in parts]).mean(dim=0)
    torch.testing.assert_close(head.logits(validation.values), mean, atol=0.05, rtol=0.05)


def test_solved_head_is_that_of_standardised_features_where_their_size_misleads() -> None:
    train, validation = clusters(0, *SETS[2]), clusters(1, *SETS[2])
    head = solve_head(train, validation, Objective(3))
    assert [choice.power for choice in head.choices] == [1.0]
    torch.testing.assert_close(
        head.weight, solve_standardised(train, validation, Objective(3)).weight
    )
    before_training = solve_smooth(train, validation, Objective(3))
    assert [choice.power for choice in before_training.choices] == [0.0, 0.5]


def test_refit_head_has_the_choices_of_the_chosen_one() -> None:
    train, validation = clusters(0, 300, 40, 3, 0.4), clusters(1, 200, 40, 3, 0.4)
    chosen = solve_head(train, validation, Objective(3))
    both = refit_head(chosen, train, validation, Objective(3))
    assert both.choices == chosen.choices
    assert both.held_out == chosen.held_out
    unseen = clusters(2, 2000, 40, 3, 0.4)
    losses = [
        F.cross_entropy(head.logits(unseen.values), unseen.targets) for head in (chosen, both)
    ]
    assert losses[1] < losses[0]


def test_solve_head_without_a_mistake_on_validation_stays_finite() -> None:
    """Ten validation samples that are all right do not prove a probability of one."""
    train, validation = clusters(0, 200, 10, 2, 5.0), clusters(1, 10, 10, 2, 5.0)
    head = solve_head(train, validation, Objective(2))
    logits = head.logits(validation.values)
    assert (logits.argmax(dim=1) == validation.targets).all()
    confidence = logits.softmax(dim=1).amax(dim=1).mean().item()
    assert 0.85 < confidence < 0.999


def test_solve_head_refuses_features_that_are_not_finite() -> None:
    train = clusters(0, 50, 10, 2, 1.0)
    train.values[3, 4] = float("nan")
    with pytest.raises(ShortfallError, match="not finite"):
        solve_head(train, clusters(1, 20, 10, 2, 1.0), Objective(2))


@pytest.mark.parametrize("samples", [100, 600])
def test_solution_does_not_depend_on_what_is_kept_in_memory(
    monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    """A basis of 100 samples, 600 scaled samples of 400 features, and scaling in each pass."""
    train = clusters(0, samples, 400, 3, 0.2)
    kept = fit_head(train, Objective(3), 0.1)
    monkeypatch.setattr(linear_probe, "_MAX_KEPT", 0)
    scaled_in_each_pass = fit_head(train, Objective(3), 0.1)
    torch.testing.assert_close(
        kept.logits(train.values), scaled_in_each_pass.logits(train.values), atol=1e-3, rtol=1e-3
    )
