"""Tonight's pictures against earlier ones: their features, their classes, and how hard they are.

Sizes of effects come first and p-values second, and few pictures are not compared. A difference is
a note. It is an alarm only if the champion also expects to be right less often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from afinar.evaluation.intervals import Interval
from afinar.evaluation.watch import Rejects, auc, watch_inputs, watch_rejects
from afinar.labelling.stats import permutation_p_value, total_variation
from afinar.nightly.evidence import Answers

_MIN_COMPARED: Final = 30  # new pictures, and earlier ones, below which they are not compared
_MAX_COMPARED: Final = 2000
_FOLDS: Final = 5
_COMPONENTS: Final = 32
_C: Final = 0.01  # strong regularisation: a few pictures in hundreds of features
_FOREIGN: Final = 12  # pictures in the gallery of the most foreign ones
_SHIFT_LIMIT: Final = 0.2  # of pictures that would have to change class
_LEVEL: Final = 0.001

Row = dict[str, Any]


class Separation(NamedTuple):
    """AUC of a classifier between earlier and tonight's pictures, and scores of the latter."""

    auc: Interval
    scores: NDArray[np.float64]


def watch_inputs_of(
    rows: Sequence[tuple[Row, Row]],
    reference: Sequence[Row],
    labels_before: Mapping[str, int],
    own: Answers,
) -> dict[str, Any]:
    """Return notes on tonight's pictures, whether they are an alarm, and the most foreign ones.

    `rows` are samples with the champion's answers, `reference` its answers for earlier pictures.
    What is usual for its confidence comes from its own test pictures.
    """
    scores = [answer["score"] for _, answer in rows]
    usual = list(own.scores.values())
    enough = min(len(scores), len(usual)) >= _MIN_COMPARED
    expected = float(np.mean(scores)) if enough else None
    usually = float(np.mean(usual)) if enough else None

    separation = _separate(
        [row["features"] for row in reference], [answer["features"] for _, answer in rows]
    )
    result = watch_inputs(separation.auc if separation else None, expected, usually)
    shares = compare_shares(labels_before, Counter(row["label"] for row, _ in rows))
    foreign: list[dict[str, Any]] = []
    if separation:
        order = np.argsort(-separation.scores, kind="stable")[:_FOREIGN]
        foreign = [
            {"uri": rows[place][0]["uri"], "label": rows[place][0]["label"],
             "predicted": rows[place][1]["label"], "score": float(rows[place][1]["score"])}
            for place in order
        ]  # fmt: skip
    return {
        "notes": [*result.sentences, *shares],
        "input_alarm": result.alarm,
        "auc": None if separation is None else asdict(separation.auc),
        "expected_accuracy": expected,
        "usual_accuracy": usually,
        "foreign": foreign,
    }


def compare_shares(before: Mapping[str, int], tonight: Mapping[str, int]) -> list[str]:
    """Return a sentence if the shares of the classes tonight are far from the earlier ones."""
    names = sorted(before.keys() | tonight.keys())
    old = np.array([before.get(name, 0) for name in names], np.int64)
    new = np.array([tonight.get(name, 0) for name in names], np.int64)
    if min(old.sum(), new.sum()) < _MIN_COMPARED:
        return []
    distance = float(total_variation(old / old.sum(), new / new.sum()))
    if distance < _SHIFT_LIMIT:
        return []
    p_value = permutation_p_value(old, new, total_variation)
    if p_value > _LEVEL:
        return []
    return [
        f"the shares of the classes differ from earlier ones: {distance:.0%} of tonight's pictures "
        f"would have to change class for the two to agree (p = {p_value:.1g})"
    ]


def reject_note(tonight: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence if tonight's ingest rejected far more of its new pictures than usual.

    Arguments are records of the step `ingest`; an empty text means that there is nothing to tell.
    """
    before, counts = 0, []
    for record in (*earlier, tonight):
        rejected = max(0, record["rejects"] - before)
        before = record["rejects"]
        counts.append(
            Rejects(read=record["added"] + record["changed"] + rejected, rejected=rejected)
        )
    usual = Rejects(
        read=sum(count.read for count in counts[:-1]),
        rejected=sum(count.rejected for count in counts[:-1]),
    )
    return watch_rejects(counts[-1], usual)


def _separate(
    before: Sequence[NDArray[np.floating]], tonight: Sequence[NDArray[np.floating]]
) -> Separation | None:
    """Return the out-of-fold AUC of a linear classifier between both, None for few pictures."""
    if min(len(before), len(tonight)) < _MIN_COMPARED:
        return None
    # Imported here, so that a night without change imports no torch.
    import torch

    from afinar.training.linear_probe import Features, Objective, fit_head

    earlier = np.stack(before[:_MAX_COMPARED]).astype(np.float32)
    compared = np.stack(tonight[:_MAX_COMPARED]).astype(np.float32)
    values = torch.from_numpy(_project(np.concatenate([earlier, compared])))
    targets = torch.zeros(len(values), dtype=torch.int64)
    targets[len(earlier) :] = 1
    folds = torch.randperm(len(values), generator=torch.Generator().manual_seed(0)) % _FOLDS

    scores = torch.zeros(len(values), dtype=torch.float64)
    for fold in range(_FOLDS):
        inside = folds != fold
        head = fit_head(Features(values[inside], targets[inside]), Objective(classes=2), _C)
        logits = head.logits(values[~inside])
        scores[~inside] = logits[:, 1] - logits[:, 0]
    new = scores[targets == 1].numpy()
    return Separation(auc(scores[targets == 0].numpy(), new), new)


def _project(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features [n, width] on their first principal components, without use of the targets.

    A classifier of a hundred pictures finds in few directions what it would find in a thousand.
    """
    centred = values - values.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    projected: NDArray[np.float32] = centred @ directions[:_COMPONENTS].T
    return projected
