"""Pictures whose label is probably wrong: confident learning on out-of-fold probabilities.

Northcutt, Jiang, Chuang 2021, Confident Learning: Estimating Uncertainty in Dataset Labels, arXiv
1911.00068. Each picture is predicted by a linear head that was solved without it: a head that has
seen a wrong label reproduces it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.errors import ShortfallError
from afinar.training.distributed import Group
from afinar.training.linear_probe import (
    Features,
    LinearHead,
    Objective,
    fit_head,
    solve_standardised,
)
from afinar.training.metrics import fit_temperature

TRULY_WRONG: Final = 0.51
"""Share of flagged pictures whose label people found to be wrong: the mean over ten test sets of
Northcutt, Athalye, Mueller 2021, Pervasive Label Errors in Test Sets, arXiv 2103.14749."""

FOLDS: Final = 5
MIN_OF_CLASS: Final = FOLDS
"""Samples that a class needs: with fewer, some fold is predicted by a head that never saw it."""

_MAX_SOLVED: Final = 50_000  # samples on which the head of a fold is solved
_MAX_CHOSEN: Final = 5_000  # samples on which the strength of the regularisation is chosen


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """Scores of the given label of each sample, by which wrong labels are ranked.

    `margin` float32 [n] is the probability of the most probable other class minus that of the
    label, from -1 (certainly right) to 1 (certainly wrong). `predicted` int64 [n] is the most
    probable class, `other` the most probable one except the label. `is_flagged` bool [n] is True
    for a label that is probably wrong.
    """

    probabilities: NDArray[np.float32]
    predicted: NDArray[np.int64]
    other: NDArray[np.int64]
    margin: NDArray[np.float32]
    is_flagged: NDArray[np.bool_]

    @property
    def ranking(self) -> NDArray[np.int64]:
        """Positions of the samples, the most suspicious label first."""
        return np.argsort(-self.margin, kind="stable")


def assign_folds(
    targets: NDArray[np.int64], groups: NDArray[np.int64], folds: int = FOLDS
) -> NDArray[np.int64]:
    """Return a fold for each sample, int64 [n].

    Samples of one group are in one fold: a copy with the same wrong label would confirm it. The
    groups of a class, by the first member of each, go to the folds in turn.
    """
    _, first, group_numbers = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((first, targets[first]))
    fold_of_group = np.empty(len(first), dtype=np.int64)
    fold_of_group[order] = np.arange(len(first)) % folds
    return fold_of_group[group_numbers]


def out_of_fold(
    features: NDArray[np.floating[Any]],
    targets: NDArray[np.int64],
    groups: NDArray[np.int64],
    classes: int,
    on_progress: Callable[[int], None] = lambda samples: None,
) -> NDArray[np.float32]:
    """Return probabilities float32 [n, classes], each by a head solved on the other folds.

    `features` is [n, d], `targets` int64 [n]. The strength of the regularisation is chosen once, on
    one fold. A head is solved on at most 50,000 samples. `on_progress` is called with the number of
    samples of each fold when they are predicted.
    """
    folds = assign_folds(targets, groups)
    order = np.random.default_rng(0).permutation(len(targets))

    def select(rows: NDArray[np.int64], limit: int) -> Features:
        rows = rows[:limit]
        values = torch.from_numpy(np.asarray(features[rows], dtype=np.float32))
        return Features(values, torch.from_numpy(targets[rows]))

    objective = Objective(classes)
    others, held_out = order[folds[order] != 0], order[folds[order] == 0]
    if not len(others) or not len(held_out):
        raise ShortfallError("too few labelled pictures to judge labels")
    chosen = solve_standardised(
        select(others, _MAX_CHOSEN), select(held_out, _MAX_CHOSEN), objective
    )

    logits = torch.zeros(len(targets), classes)
    for fold in range(FOLDS):
        rows, held_out = order[folds[order] != fold], np.flatnonzero(folds == fold)
        head = fit_head(select(rows, _MAX_SOLVED), objective, chosen.choices[0].c)
        logits[torch.from_numpy(held_out)] = _predict(head, features, held_out)
        on_progress(len(held_out))
    temperature = fit_temperature(logits, torch.from_numpy(targets), Group(alone=True))
    return np.asarray((logits / temperature).softmax(dim=1).numpy(), dtype=np.float32)


def _predict(
    head: LinearHead, features: NDArray[np.floating[Any]], rows: NDArray[np.int64]
) -> torch.Tensor:
    blocks = [rows[start : start + _MAX_CHOSEN] for start in range(0, len(rows), _MAX_CHOSEN)]
    parts = [
        head.logits(torch.from_numpy(np.asarray(features[block], dtype=np.float32))).float()
        for block in blocks
    ]
    return torch.cat(parts) if parts else torch.zeros(0, len(head.bias))


def score_labels(probabilities: NDArray[np.float32], targets: NDArray[np.int64]) -> LabelScores:
    """Judge the label of each sample from out-of-fold probabilities [n, classes].

    A sample is flagged as in "prune by noise rate": of the samples with label i, as many are
    flagged as belonging to class j as the confident joint estimates, those with the largest
    difference of p_j and p_i.
    """
    rows = np.arange(len(targets))
    of_label = probabilities[rows, targets]
    others = probabilities.copy()
    others[rows, targets] = -1
    other = others.argmax(axis=1)
    flagged = np.zeros(len(targets), dtype=np.bool_)

    wrong = estimated_joint(probabilities, targets)
    for label, actual in np.argwhere(wrong > 0):
        members = np.flatnonzero(targets == label)
        margins = probabilities[members, actual] - probabilities[members, label]
        worst = members[np.argsort(-margins, kind="stable")[: wrong[label, actual]]]
        # The estimate is a count; a sample whose label is the most probable class is no error.
        flagged[worst[probabilities[worst, actual] > probabilities[worst, label]]] = True
    return LabelScores(
        probabilities=probabilities,
        predicted=probabilities.argmax(axis=1),
        other=other,
        margin=others[rows, other] - of_label,
        is_flagged=flagged,
    )


def estimated_joint(
    probabilities: NDArray[np.float32], targets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the estimated number of samples by label and true class, int64 [classes, classes].

    A sample counts as of class j if p_j reaches the mean p_j of the samples that are labelled j; of
    several such classes the most probable one counts. Samples that reach none do not count, so each
    row is scaled to the number of samples with that label. The diagonal is 0.

    Example: of 100 samples labelled cat, 60 reach the threshold of cat and 20 that of dog. Then
    20 / 80 of the 100, 25 samples, are estimated to be dogs.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(targets, minlength=classes)
    thresholds = np.full(classes, np.inf)
    for label in np.flatnonzero(counts):
        thresholds[label] = probabilities[targets == label, label].mean(dtype=np.float64)

    reached = np.where(probabilities >= thresholds - 1e-6, probabilities, -1)
    actual = reached.argmax(axis=1)
    is_counted = reached.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (targets[is_counted], actual[is_counted]), 1)

    scale = counts / np.maximum(joint.sum(axis=1), 1)
    numbers: NDArray[np.int64] = np.rint(joint * scale[:, None]).astype(np.int64)
    np.fill_diagonal(numbers, 0)
    return numbers
