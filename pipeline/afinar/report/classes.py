"""Tables by class: recall, precision and F1 on test, and the balance of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.report.charts import Key
from afinar.storage.arrow import group_by

SPLITS: Final = ("train", "validation", "test")
_HELD_OUT: Final = "in no split"
_UNLABELLED: Final = "(no label)"


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: pictures by split, and the results on test, None where undefined.

    `change` is F1 minus that of the champion. `target` is the anchor of its pictures, if any.
    """

    name: str
    train: int
    validation: int
    test: int
    hits: int
    recall: float | None
    precision: float | None
    f1: float | None
    change: float | None = None
    target: str = ""


def class_rows(
    counts: NDArray[np.int64],
    classes: list[str],
    pictures: Mapping[str, Counter[str]],
    targets: Mapping[str, str],
    champion: Mapping[str, float | None] | None = None,
) -> list[ClassRow]:
    """Return a row for each class, the lowest F1 first; classes without test pictures are last.

    `counts` are those of the test split, int64 [true, predicted]; `pictures` has the counts of each
    class by split, `champion` the F1 of each class.
    """
    predicted = counts.sum(axis=0).tolist()
    true = counts.sum(axis=1).tolist()
    rows = []
    for number, name in enumerate(classes):
        hits = int(counts[number, number])
        f1 = f1_score(hits, true[number], predicted[number])
        before = (champion or {}).get(name)
        rows.append(
            ClassRow(
                name=name,
                train=pictures["train"][name],
                validation=pictures["validation"][name],
                test=true[number],
                hits=hits,
                recall=hits / true[number] if true[number] else None,
                precision=hits / predicted[number] if predicted[number] else None,
                f1=f1,
                change=None if f1 is None or before is None else f1 - before,
                target=targets.get(name, ""),
            )
        )
    return sorted(rows, key=lambda row: (not row.test, 2.0 if row.f1 is None else row.f1))


def f1_score(hits: int, true: int, predicted: int) -> float | None:
    """Return the harmonic mean of precision and recall; None for a class that never occurs."""
    return 2 * hits / (true + predicted) if true + predicted else None


def f1_by_class(counts: NDArray[np.int64], classes: list[str]) -> dict[str, float | None]:
    """Return the F1 of each class from counts [true, predicted]."""
    true, predicted = counts.sum(axis=1).tolist(), counts.sum(axis=0).tolist()
    return {
        name: f1_score(int(counts[number, number]), true[number], predicted[number])
        for number, name in enumerate(classes)
    }


def split_counts(index: pa.Table) -> dict[str, Counter[str]]:
    """Return the number of samples of each class by split; "in no split" for those held out."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in (*SPLITS, _HELD_OUT)}
    grouped = group_by(index, ["split", "label"]).aggregate([([], "count_all")])
    for row in grouped.to_pylist():
        split = row["split"] or _HELD_OUT
        counts.setdefault(split, Counter())[row["label"] or _UNLABELLED] += row["count_all"]
    return counts


@dataclass(frozen=True)
class BalancePart:
    """Pictures of a class in a split; `length` is in per cent of the longest bar."""

    count: int
    length: float
    colour: int


@dataclass(frozen=True)
class BalanceRow:
    """One class: its pictures by split, and its share of all."""

    name: str
    parts: list[BalancePart]
    share: float
    target: str


@dataclass(frozen=True)
class Balance:
    """Pictures of each class by split, the largest class first; `keys` name the splits."""

    keys: list[Key]
    rows: list[BalanceRow]


def class_balance(dataset: Dataset, targets: Mapping[str, str]) -> Balance:
    """Return the balance of a dataset; `targets` has anchors by class."""
    counts = split_counts(dataset.index)
    splits = [split for split, by_class in counts.items() if by_class or split in SPLITS]
    totals: Counter[str] = Counter()
    for by_class in counts.values():
        totals += by_class

    names = sorted({*dataset.classes, *totals}, key=lambda name: (-totals[name], name))
    longest, total = max(totals.values(), default=1), totals.total() or 1
    colours = {split: 1 + number % 6 for number, split in enumerate(splits)}
    return Balance(
        [Key(split, colours[split], "box") for split in splits],
        [
            BalanceRow(
                name,
                [
                    BalancePart(n := counts[split][name], 100 * n / longest, colours[split])
                    for split in splits
                ],
                totals[name] / total,
                targets.get(name, ""),
            )
            for name in names
        ],
    )
