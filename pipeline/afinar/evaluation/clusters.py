"""Clusters of similar pictures of which unusually many are predicted wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afinar.evaluation.intervals import Interval, binomial_tail, wilson
from afinar.evaluation.neighbours import Neighbours

MIN_CLUSTER: Final = 20
"""Judged pictures that a cluster needs."""

_ROUNDS: Final = 10
_LEVEL: Final = 0.05  # of the tests together


@dataclass(frozen=True, kw_only=True)
class WeakCluster:
    """A cluster whose accuracy is below that of all pictures. `rows` are in ascending order."""

    rows: list[int]
    accuracy: Interval
    p_value: float


def find_clusters(neighbours: Neighbours) -> NDArray[np.int64]:
    """Return the cluster of each row, named by one of its rows: int64 [n].

    Label propagation over the graph of neighbours (Raghavan, Albert, Kumara 2007, arXiv 0709.2938):
    each row takes the most frequent cluster among itself and its neighbours, all rows at once; of
    equally frequent ones the one with the smallest name. Ten rounds.
    """
    cluster = np.arange(len(neighbours))
    for _ in range(_ROUNDS):
        around = np.column_stack([cluster, cluster[neighbours.indices]])
        updated = _most_frequent(np.sort(around, axis=1))
        if np.array_equal(updated, cluster):
            break
        cluster = updated
    return cluster


def _most_frequent(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the most frequent number of each row, whose numbers are in ascending order."""
    best, run = rows[:, 0].copy(), np.ones(len(rows), dtype=np.int64)
    longest = run.copy()
    for column in range(1, rows.shape[1]):
        run = np.where(rows[:, column] == rows[:, column - 1], run + 1, 1)
        is_longer = run > longest
        best[is_longer] = rows[is_longer, column]
        longest = np.maximum(longest, run)
    return best


def weak_clusters(
    clusters: NDArray[np.int64], is_judged: NDArray[np.bool_], is_hit: NDArray[np.bool_]
) -> list[WeakCluster]:
    """Return clusters that are predicted worse than the whole, the lowest accuracy first.

    All arguments are [n]. `is_judged` is True for pictures with a prediction, `is_hit` for right
    ones. A cluster is reported if chance explains its errors with a probability (binomial) below
    0.05 divided by the number of clusters (Bonferroni).
    """
    rows = np.flatnonzero(is_judged)
    if not len(rows):
        return []
    error = 1 - float(is_hit[rows].mean())
    order = rows[np.argsort(clusters[rows], kind="stable")]
    bounds = np.flatnonzero(np.diff(clusters[order])) + 1
    members = [part for part in np.split(order, bounds) if len(part) >= MIN_CLUSTER]

    found = []
    for part in members:
        hits = int(is_hit[part].sum())
        p_value = binomial_tail(len(part) - hits, len(part), error)
        if p_value < _LEVEL / len(members):
            found.append(
                WeakCluster(
                    rows=np.sort(part).tolist(),
                    accuracy=wilson(hits, len(part)),
                    p_value=p_value,
                )
            )
    return sorted(found, key=lambda cluster: cluster.accuracy.value)
