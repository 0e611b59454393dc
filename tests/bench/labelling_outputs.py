"""Predictions of the sides of a comparison, read back and compared picture by picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from afinar.predictions.part_reader import open_predictions
from tests.bench.world import WrongBenchError

Row = tuple[str, str, float]
"""Path of a picture, its label of two classes, and the label's probability."""

SAME_LABEL: Final = 0.995
APART: Final = 0.2
"""Largest difference of a probability. With a bilinear instead of a bicubic filter those of the
benches' networks differ by 0.012 on average and by at most 0.11 in 800 pictures; with a picture of
the other class by 0.6."""
MIXED_UP: Final = 0.5
"""Largest mean difference, as a fraction of that between neighbours, 0.02 to 0.04. Answers of other
pictures would differ by all of it."""


@dataclass(frozen=True)
class Agreement:
    """Share of pictures with the same label; largest and mean difference of a probability."""

    labels: float
    worst: float
    mean: float

    def __str__(self) -> str:
        return f"{100 * self.labels:.1f} %, {self.worst:.3f}"


def read_ours(out: Path) -> Iterator[Row]:
    """Yield the rows of a prediction folder."""
    table = open_predictions(str(out)).table
    yield from zip(
        *(table.column(name).to_pylist() for name in ("uri", "label", "score")), strict=True
    )


def read_answers(out: Path) -> Iterator[Row]:
    """Yield the rows of a peer's Parquet files: `path`, `label`, `score`."""
    for file in sorted(out.rglob("*.parquet")):
        table = pq.read_table(file, columns=["path", "label", "score"])
        for path, label, score in zip(
            *(column.to_pylist() for column in table.columns), strict=True
        ):
            yield path.removeprefix("file://"), label, score


def require_every(name: str, rows: Iterable[Row], source: Path) -> dict[str, tuple[str, float]]:
    """Return label and probability by path.

    Raises WrongBenchError unless every picture of `source` is there once, and no other.
    """
    wanted = {str(path) for path in source.rglob("*.jpg")}
    answers: dict[str, tuple[str, float]] = {}
    for path, label, score in rows:
        if path in answers or path not in wanted:
            reason = "twice" if path in answers else "which is not a picture"
            raise WrongBenchError(f"{name} labelled {path}, {reason}")
        answers[path] = (label, score)
    if len(answers) != len(wanted):
        raise WrongBenchError(f"{name} labelled {len(answers)} of {len(wanted)} pictures")
    return answers


def require_same_answers(
    name: str, rows: Iterable[Row], ours: Iterable[Row], source: Path
) -> Agreement:
    """Require the same labels for 99.5 % of the pictures, with probabilities near those of afinar.

    They must be so near that they belong to the same pictures: shifted by one position, the answers
    of afinar itself differ by more than twice as much. Raises WrongBenchError, also for what
    `require_every` refuses.
    """
    their_answers = require_every(name, rows, source)
    our_answers = require_every("afinar", ours, source)
    paths = sorted(our_answers)
    one, other = ([answers[path] for path in paths] for answers in (our_answers, their_answers))
    labels = sum(a[0] == b[0] for a, b in zip(one, other, strict=True)) / len(one)
    if labels < SAME_LABEL:
        raise WrongBenchError(f"{name}: {100 * labels:.1f} % of the labels are ours")
    first = one[0][0]
    p, q = (
        np.array([score if label == first else 1 - score for label, score in side])
        for side in (one, other)
    )
    apart = np.abs(p - q)
    agreement = Agreement(labels, float(apart.max()), float(apart.mean()))
    if not agreement.worst <= APART:
        raise WrongBenchError(
            f"{name}: a probability is {agreement.worst:.2f} off, {APART:g} are allowed"
        )
    neighbours = _neighbours(p)
    if agreement.mean > MIXED_UP * neighbours:
        raise WrongBenchError(
            f"{name}: answers are {agreement.mean:.3f} off, as other pictures' are "
            f"({neighbours:.3f})"
        )
    return agreement


def _neighbours(probabilities: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Return the mean difference between neighbouring pictures among those of one label."""
    order = probabilities > 0.5
    groups = (probabilities[order], probabilities[~order])
    return float(np.concatenate([np.abs(np.diff(group)) for group in groups]).mean())
