"""Corrections of splits that were assigned by hash, so that each class is in each split. Pure.

Hashes leave small classes without test pictures: with a share of 0.15, a class of 12 has none with
probability 0.85**12 = 14 %. So keys (a group, else a content) of a class that has too few pictures
in a split are moved there, those whose hashes are nearest to it first. Only keys that no published
version has are moved: a picture never changes its split afterwards. What a class is given therefore
depends on which pictures came in which version, but only for classes that need a correction.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.config.ingest import SplitShares
from afinar.sources.entry import SPLITS
from afinar.storage.arrow import group_by

FEW: Final = 5
"""A class with fewer pictures in a split is named in a note: a recall of 4 pictures has steps of 25
points."""

_LEAST: Final = 0.5  # of its expected share a class has in each split, and at least one picture
_MOST_NEEDED_FIRST: Final = ("train", "test", "validation")
_NAMED: Final = 10  # classes that a note names


@dataclass
class _Key:
    """A group, or a content without group: what is moved as a whole. `rows` are its samples."""

    position: float
    split: str
    labels: Counter[str] = field(default_factory=Counter)
    rows: list[int] = field(default_factory=list)


def least_counts(pictures: int, shares: SplitShares) -> dict[str, int]:
    """Return how many pictures of a class of this size each split has at least.

    Half of its expected share, and one; a class of fewer pictures than splits is in train first,
    then in test. Example: shares 0.7, 0.15, 0.15 give a class of 40 at least 14, 3, 3; one of 2
    pictures 1 in train, 1 in test.
    """
    left = pictures
    least = {}
    for split in _MOST_NEEDED_FIRST:
        share = getattr(shares, split)
        wanted = max(1, int(pictures * share * _LEAST)) if share else 0
        least[split] = min(wanted, left)
        left -= least[split]
    return least


def stratify(
    samples: pa.Table,
    splits: pa.ChunkedArray,
    positions: NDArray[np.float64],
    fixed: NDArray[np.bool_],
    shares: SplitShares,
) -> pa.ChunkedArray:
    """Return the splits with keys moved to where their classes have too few pictures.

    `samples` has sample_id, label, group, and split: null for a sample that is held out, which does
    not count. `positions` are the hashes in [0, 1) of the samples' keys. Keys with a sample in
    `fixed` stay. No move leaves another class, or another split, with too few.
    """
    counts = _count(samples)
    least = {
        label: least_counts(sum(by_split.values()), shares) for label, by_split in counts.items()
    }
    needy = [
        label
        for label, by_split in counts.items()
        if any(by_split[split] < least[label][split] for split in SPLITS)
    ]
    if not needy:
        return splits

    keys = _movable_keys(samples, splits, positions, fixed, needy)
    moved: dict[int, str] = {}
    # Small classes first: they have the least choice.
    for label in sorted(needy, key=lambda label: (sum(counts[label].values()), label)):
        of_label = [(name, key) for name, key in keys.items() if label in key.labels]
        for split in _MOST_NEEDED_FIRST:
            low, high = _interval(split, shares)
            of_label.sort(key=lambda item: (_distance(item[1].position, low, high), item[0]))
            for _, key in of_label:
                if counts[label][split] >= least[label][split]:
                    break
                if key.split != split and _can_leave(key, counts, least):
                    for other, number in key.labels.items():
                        counts[other][key.split] -= number
                        counts[other][split] += number
                    key.split = split
                    moved |= dict.fromkeys(key.rows, split)

    values = splits.to_pylist() if moved else []
    for row, split in moved.items():
        values[row] = split
    return pa.chunked_array([pa.array(values, pa.string())]) if moved else splits


def _count(samples: pa.Table) -> dict[str, Counter[str]]:
    """Return the number of samples of each class by split."""
    known = samples.filter(pc.and_(*(pc.is_valid(samples.column(n)) for n in ("label", "split"))))
    table = group_by(known, ["label", "split"]).aggregate([([], "count_all")])
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in table.to_pylist():
        counts[row["label"]][row["split"]] = row["count_all"]
    return dict(counts)


def _movable_keys(
    samples: pa.Table,
    splits: pa.ChunkedArray,
    positions: NDArray[np.float64],
    fixed: NDArray[np.bool_],
    labels: list[str],
) -> dict[str, _Key]:
    """Return the keys with samples of these classes, without those that have a fixed sample."""
    names = pc.coalesce(samples.column("group"), samples.column("sample_id"))
    has_label = pc.is_in(samples.column("label"), pa.array(labels, pa.string()))
    counted = pc.is_valid(samples.column("split"))
    candidates = names.filter(pc.and_(pc.and_(has_label, counted), pa.array(~fixed))).unique()

    rows = pc.indices_nonzero(pc.is_in(names, candidates)).to_numpy()
    columns = (
        column.take(pa.array(rows)).to_pylist()
        for column in (names, samples.column("label"), samples.column("split"), splits)
    )
    keys: dict[str, _Key] = {}
    stay: set[str] = set()
    for row, name, label, counted_split, split in zip(rows.tolist(), *columns, strict=True):
        if fixed[row]:
            stay.add(name)
        key = keys.setdefault(name, _Key(float(positions[row]), split))
        key.rows.append(row)
        if label is not None and counted_split is not None:
            key.labels[label] += 1
    return {name: key for name, key in keys.items() if name not in stay}


def _can_leave(
    key: _Key, counts: dict[str, Counter[str]], least: dict[str, dict[str, int]]
) -> bool:
    return all(
        counts[label][key.split] - number >= least[label][key.split]
        for label, number in key.labels.items()
    )


def _interval(split: str, shares: SplitShares) -> tuple[float, float]:
    """Return the hashes that belong to a split, as `splits.assign_splits` compares them."""
    edges = (0.0, shares.train, shares.train + shares.validation, 1.0)
    number = SPLITS.index(split)
    return edges[number], edges[number + 1]


def _distance(position: float, low: float, high: float) -> float:
    return max(low - position, position - high, 0.0)


def few_notes(labels: pa.ChunkedArray, splits: pa.ChunkedArray) -> list[str]:
    """Return notes that name the classes with fewer than `FEW` pictures in a split.

    Splits that are empty as a whole have no note: somebody wanted them so.
    """
    counts = _count(pa.table({"label": labels, "split": splits}))
    notes = []
    for split in SPLITS:
        if not any(by_split[split] for by_split in counts.values()):
            continue
        few = sorted(
            (by_split[split], label) for label, by_split in counts.items() if by_split[split] < FEW
        )
        if few:
            names = ", ".join(f"{label} ({count})" for count, label in few[:_NAMED])
            more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
            verb = "has" if len(few) == 1 else "have"
            notes.append(
                f"{len(few)} of {len(counts)} classes {verb} fewer than {FEW} pictures in {split}: "
                f"{names}{more}"
            )
    return notes
