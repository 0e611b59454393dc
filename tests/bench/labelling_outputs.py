"""What each side of a comparison says of the pictures, read back and compared: the same answers for the same files."""

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
"""A picture's path, its label, and the label's probability; of two classes."""

SAME_LABEL: Final = 0.995
APART: Final = 0.2
"""Of a probability. A bilinear instead of a bicubic filter changes those of the benches' networks by 0.012 on average
and at most 0.11 of 800; a picture of the other class would be off by 0.6."""
MIXED_UP: Final = 0.5
"""Of what neighbours differ by, 0.02 to 0.04: answers in each other's place would differ by all of it."""


@dataclass(frozen=True)
class Agreement:
    """Share of pictures with the same label; largest and mean difference of a probability."""

    labels: float
    worst: float
    mean: float

    def __str__(self) -> str:
        return f"{100 * self.labels:.1f} %, {self.worst:.3f}"


def read_ours(out: Path) -> Iterator[Row]:
    """A prediction folder."""
    table = open_predictions(str(out)).table
    yield from zip(
        *(table.column(name).to_pylist() for name in ("uri", "label", "score")), strict=True
    )


def read_answers(out: Path) -> Iterator[Row]:
    """A peer's Parquet: `path`, `label`, `score`."""
    for file in sorted(out.rglob("*.parquet")):
        table = pq.read_table(file, columns=["path", "label", "score"])
        for path, label, score in zip(
            *(column.to_pylist() for column in table.columns), strict=True
        ):
            yield path.removeprefix("file://"), label, score


def require_every(name: str, rows: Iterable[Row], source: Path) -> dict[str, tuple[str, float]]:
    """The answers by path: every picture of `source` once and none besides. Raises WrongBenchError."""
    wanted = {str(path) for path in source.rglob("*.jpg")}
    found: dict[str, tuple[str, float]] = {}
    for path, label, score in rows:
        if path in found or path not in wanted:
            raise WrongBenchError(
                f"{name} labelled {path}, {'twice' if path in found else 'which is not a picture'}"
            )
        found[path] = (label, score)
    if len(found) != len(wanted):
        raise WrongBenchError(f"{name} labelled {len(found)} of {len(wanted)} pictures")
    return found


def require_same_answers(
    name: str, rows: Iterable[Row], ours: Iterable[Row], source: Path
) -> Agreement:
    """As `require_every`, and the same labels for 99.5 % of the pictures, with probabilities near ours.

    Near enough to be the same picture's, too: shifted by one place our own answers differ by more than twice as much.
    Raises WrongBenchError.
    """
    theirs, mine = require_every(name, rows, source), require_every("afinar", ours, source)
    one, other = ([answers[path] for path in sorted(mine)] for answers in (mine, theirs))
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
            f"{name}: answers are {agreement.mean:.3f} off, as other pictures' are ({neighbours:.3f})"
        )
    return agreement


def _neighbours(probabilities: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Mean difference between pictures that follow each other among those of one label."""
    order = probabilities > 0.5
    groups = (probabilities[order], probabilities[~order])
    return float(np.concatenate([np.abs(np.diff(group)) for group in groups]).mean())
