"""Heads that are solved again on training and validation pictures together."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from afinar.training.linear_probe import (
    Choice,
    Features,
    Objective,
    fit_head,
    refit_head,
    solve_smooth,
)

CLASSES = 4


def make_features(seed: int, samples: int, width: int = 40) -> Features:
    """Return features of classes that overlap; each has a scale of its own."""
    centres = np.random.default_rng(0).normal(0, 0.6, (CLASSES, width))
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, samples)
    values = (centres[targets] + rng.normal(0, 1, (samples, width))) * np.geomspace(0.1, 10, width)
    return Features(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(targets))


def both(first: Features, second: Features) -> Features:
    return Features(
        torch.cat([first.values, second.values]), torch.cat([first.targets, second.targets])
    )


def test_refit_is_the_regression_on_both_splits_of_scikit_learn() -> None:
    train, validation = make_features(1, 300), make_features(2, 100)
    c = 0.05
    chosen = fit_head(train, Objective(CLASSES), c)
    head = refit_head(chosen, train, validation, Objective(CLASSES))

    samples, test = both(train, validation), make_features(3, 2000)
    scaler = StandardScaler().fit(samples.values.numpy())
    expected = LogisticRegression(C=c, max_iter=2000, tol=1e-8).fit(
        scaler.transform(samples.values.numpy()), samples.targets.numpy()
    )
    logits = head.logits(test.values).softmax(dim=1).numpy()
    np.testing.assert_allclose(
        logits, expected.predict_proba(scaler.transform(test.values.numpy())), atol=2e-3
    )


def test_refit_keeps_the_temperature_of_the_chosen_head() -> None:
    train, validation = make_features(1, 300), make_features(2, 100)
    plain = fit_head(train, Objective(CLASSES), 0.05)
    heads = [
        refit_head(head, train, validation, Objective(CLASSES))
        for head in (plain, plain.divided(2.5))
    ]
    assert [head.choices for head in heads] == [(Choice(0.05),), (Choice(0.05, temperature=2.5),)]
    torch.testing.assert_close(heads[0].weight / 2.5, heads[1].weight, rtol=1e-3, atol=1e-5)


def test_refit_is_better_with_few_labels() -> None:
    train, validation, test = make_features(1, 80), make_features(2, 240), make_features(3, 4000)
    objective = Objective(CLASSES)
    chosen = solve_smooth(train, validation, objective)
    assert [choice.power for choice in chosen.choices] == [0.0, 0.5]
    head = refit_head(chosen, train, validation, objective)
    before, after = (
        torch.nn.functional.cross_entropy(each.logits(test.values), test.targets).item()
        for each in (chosen, head)
    )
    assert after < before


def test_refit_of_two_classes_has_the_penalty_of_one_vector() -> None:
    train, validation = (
        Features(data.values[data.targets < 2], data.targets[data.targets < 2])
        for data in (make_features(1, 300), make_features(2, 100))
    )
    chosen = fit_head(train, Objective(2), 0.05)
    head = refit_head(chosen, train, validation, Objective(2))
    expected = fit_head(both(train, validation), Objective(2), 0.05)
    torch.testing.assert_close(head.weight, expected.weight, rtol=1e-2, atol=1e-4)
