"""Confusion matrix of a page, its most frequent pairs, and a gallery of the mistakes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.evaluation.comparison import EvaluatedRun
from afinar.report.pieces import PICTURES, THUMBNAIL_PX, Tile, tiles
from afinar.report.rendering import shorten

TABLE_CLASSES: Final = 20
"""Largest number of classes of a table; more are drawn in cells of 18 px."""
MATRIX_CLASSES: Final = 120
"""Largest number of classes of a matrix: more than that nobody reads, pairs are listed instead."""
PAIRS: Final = 100

_PER_PAIR: Final = 24
_CAPTION: Final = 28  # characters of a class name below a picture
_CELL_PX: Final = 18
_LEFT_PX: Final = 160
_TOP_PX: Final = 130


@dataclass(frozen=True)
class ConfusionCell:
    """A count, its share of the true class from 0 to 1, and the anchor of its pictures."""

    column: int
    count: int
    share: float
    is_right: bool
    target: str


@dataclass(frozen=True)
class ConfusionRow:
    """One true class: a cell for each predicted class."""

    name: str
    cells: list[ConfusionCell]


@dataclass(frozen=True)
class ConfusionMatrix:
    """Rows of a matrix, drawn as a table or, with more classes, as an SVG of this size."""

    rows: list[ConfusionRow]

    left: ClassVar[int] = _LEFT_PX
    top: ClassVar[int] = _TOP_PX

    @property
    def is_table(self) -> bool:
        return len(self.rows) <= TABLE_CLASSES

    @property
    def has_links(self) -> bool:
        return any(cell.target for row in self.rows for cell in row.cells)

    @property
    def width(self) -> int:
        return _LEFT_PX + _CELL_PX * len(self.rows) + 1

    @property
    def height(self) -> int:
        return _TOP_PX + _CELL_PX * len(self.rows) + 1

    def place(self, number: int, axis: str) -> int:
        """Return the left or upper edge of a column ("x") or row ("y")."""
        return (_LEFT_PX if axis == "x" else _TOP_PX) + _CELL_PX * number


def confusion_matrix(
    counts: NDArray[np.int64], classes: list[str], targets: Mapping[tuple[int, int], str]
) -> ConfusionMatrix | None:
    """Return counts [true class, predicted class] as a matrix; None if it would be unreadable.

    `targets` has the anchors of cells whose pictures are on the page.
    """
    if len(classes) > MATRIX_CLASSES:
        return None
    totals = np.maximum(counts.sum(axis=1), 1).tolist()  # 1: a class without samples
    rows = []
    for true, (name, row) in enumerate(zip(classes, counts.tolist(), strict=True)):
        cells = [
            ConfusionCell(
                predicted,
                count,
                count / totals[true],
                true == predicted,
                targets.get((true, predicted), "") if count else "",
            )
            for predicted, count in enumerate(row)
        ]
        rows.append(ConfusionRow(name, cells))
    return ConfusionMatrix(rows)


@dataclass(frozen=True)
class ConfusedPair:
    """A true and a predicted class that differ, their count, and its share of the true class."""

    label: str
    predicted: str
    count: int
    share: float
    target: str


def most_confused(
    counts: NDArray[np.int64], classes: list[str], targets: Mapping[tuple[int, int], str]
) -> list[ConfusedPair]:
    """Return the most frequent pairs of true and predicted class that differ."""
    wrong = counts - np.diag(np.diag(counts))
    pairs = np.argwhere(wrong)
    order = np.argsort(-wrong[tuple(pairs.T)], kind="stable")[:PAIRS]
    totals = counts.sum(axis=1)
    return [
        ConfusedPair(
            classes[true],
            classes[predicted],
            int(wrong[true, predicted]),
            float(wrong[true, predicted] / totals[true]),
            targets.get((true, predicted), ""),
        )
        for true, predicted in pairs[order].tolist()
    ]


@dataclass(frozen=True)
class MistakeGroup:
    """Mistakes of one pair of classes: how many there are, and the pictures that are shown."""

    target: str
    label: str
    predicted: str
    count: int
    tiles: list[Tile]


@dataclass(frozen=True)
class MistakeGallery:
    """Mistakes by pair, the most frequent pair first."""

    groups: list[MistakeGroup]
    targets: dict[tuple[int, int], str]

    @property
    def shown(self) -> int:
        return sum(len(group.tiles) for group in self.groups)


def mistakes_of(run: EvaluatedRun) -> pa.Table:
    """Return the wrong test predictions, those with the highest scores first."""
    is_wrong = pc.not_equal(run.test.column("label"), run.test.column("predicted"))
    return run.test.filter(is_wrong).sort_by([("score", "descending")])


def mistake_gallery(
    dataset: Dataset,
    run: EvaluatedRun,
    limit: int = PICTURES,
    size_px: int = THUMBNAIL_PX,
    *,
    stretch: bool = False,
) -> MistakeGallery:
    """Return at most `limit` mistakes by pair of classes, in each pair the highest scores first.

    Every pair has its first picture before any pair has a second one. Example: with a limit of 4
    and pairs of 9, 2 and 1 mistakes, they show 2, 1 and 1.
    """
    by_pair: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in mistakes_of(run).to_pylist():
        by_pair[row["label"], row["predicted"]].append(row)

    pairs = sorted(by_pair.items(), key=lambda item: -len(item[1]))
    ranked = sorted(
        (position, number)
        for number, (_, rows) in enumerate(pairs)
        for position in range(min(len(rows), _PER_PAIR))
    )
    shown = [0] * len(pairs)
    for _, number in ranked[:limit]:
        shown[number] += 1

    rows = [row for (_, rows), n in zip(pairs, shown, strict=True) for row in rows[:n]]
    pictures = iter(
        tiles(
            dataset,
            [row["row"] for row in rows],
            [mistake_caption(row) for row in rows],
            size_px,
            alts=[mistake_title(row) for row in rows],
            stretch=stretch,
        )
    )
    numbers = {name: number for number, name in enumerate(run.version.classes)}
    groups, targets = [], {}
    for ((label, predicted), members), n in zip(pairs, shown, strict=True):
        if not n:
            continue
        pair = numbers[label], numbers[predicted]
        targets[pair] = f"pair-{pair[0]}-{pair[1]}"
        shown_tiles = [next(pictures) for _ in range(n)]
        groups.append(MistakeGroup(targets[pair], label, predicted, len(members), shown_tiles))
    return MistakeGallery(groups, targets)


def mistake_caption(row: dict[str, Any]) -> str:
    """Return the score of a wrong prediction, and the class that came second, if it is recorded."""
    text = f"{row['score']:.0%}"
    if row.get("runner_up") is None:
        return text
    second = (
        "the true class"
        if row["runner_up"] == row["label"]
        else shorten(row["runner_up"], _CAPTION)
    )
    return f"{text}, then {second} {row['runner_up_score']:.0%}"


def mistake_title(row: dict[str, Any]) -> str:
    """Return the true and the predicted class of a wrong prediction."""
    label, predicted = (shorten(row[name], _CAPTION) for name in ("label", "predicted"))
    return f"{label} predicted as {predicted}"
