"""Exact nearest neighbours by blocks of a matrix product: memory grows with n, not with n * n.

Features are centred and scaled to unit length. Activations after a ReLU are all positive, so that
without centring any two pictures are similar.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK: Final = 4096  # rows and columns of a block of similarities: 64 MB
_CONVERTED: Final = 16384  # rows that are converted at a time
_SCANNED: Final = 2048  # rows of a block that is compared with one query: in the cache of a core
_GATHERED: Final = 2**24  # numbers of neighbours' features that are gathered at a time, 64 MB

Features = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The k nearest other rows of each row, nearest first.

    `indices` is int32 [n, k]. `distances` float32 [n, k] are Euclidean distances of unit vectors,
    from 0 to 2; the cosine of two features is 1 - distance² / 2.
    """

    indices: NDArray[np.int32]
    distances: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def median_distance(self) -> float:
        """Median over rows of the distance to the last of the k neighbours.

        A row whose nearest neighbour is a copy has k - 1 other neighbours, so copies do not lower
        this median unless groups of more than k copies are common. 0.0 without neighbours.
        """
        return float(np.median(self.distances[:, -1])) if self.distances.size else 0.0


def unit_rows(features: Features) -> Tensor:
    """Return features [n, d] centred and scaled to unit length, float32 [n, d].

    A row that equals the mean stays a row of zeros.
    """
    return _scaled(features, mean_of(features))


def mean_of(features: Features) -> NDArray[np.float64]:
    """Return the mean row of features [n, d], float64 [d]."""
    total = np.zeros(features.shape[1])
    for block in _blocks(len(features), _CONVERTED):
        total += features[block].sum(axis=0, dtype=np.float64)
    return total / max(len(features), 1)


def _scaled(features: Features, mean: NDArray[np.float64]) -> Tensor:
    rows = torch.empty(features.shape, dtype=torch.float32)
    centre = torch.from_numpy(mean.astype(np.float32))
    for block in _blocks(len(features), _CONVERTED):
        centred = torch.from_numpy(np.asarray(features[block], dtype=np.float32)) - centre
        rows[block] = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return rows


def nearest_neighbours(
    units: Tensor, k: int, on_progress: Callable[[int], None] = lambda rows: None
) -> Neighbours:
    """Return the k nearest other rows of each row of `units`, float32 [n, d].

    With fewer than k + 1 rows there are n - 1 neighbours. `on_progress` is called with the number
    of finished rows after each block of rows.

    The product of blocks i and j gives the neighbours of i in j and those of j in i, so half of
    the products suffice. |a|² + |b|² - 2ab loses the distance of near copies, so those of the k
    neighbours are computed again from their differences.
    """
    k = max(min(k, len(units) - 1), 0)
    best = _Best.empty(len(units), k)
    blocks = list(_blocks(len(units), _BLOCK)) if k else []
    for number, rows in enumerate(blocks):
        for columns in blocks[number:]:
            similarity = units[rows] @ units[columns].T
            if columns is rows:
                similarity.fill_diagonal_(-torch.inf)
            else:
                best.merge(columns, similarity.T, rows.start)
            best.merge(rows, similarity, columns.start)
        on_progress(rows.stop - rows.start)
    return _with_exact_distances(units, best.indices)


def estimate_s(units: Tensor, k: int) -> float:
    """Return the seconds that `nearest_neighbours` will take, from the time of one product.

    It is the second one of a row of blocks: the first one fills the lists of neighbours, which
    takes longer. 0.0 for fewer than three blocks of rows.
    """
    blocks = list(_blocks(len(units), _BLOCK))
    if len(blocks) < 3:
        return 0.0
    rows, product_s = blocks[0], 0.0
    best = _Best.empty(len(units), k)
    for columns in blocks[1:3]:
        started = time.perf_counter()
        similarity = units[rows] @ units[columns].T
        best.merge(columns, similarity.T, rows.start)
        best.merge(rows, similarity, columns.start)
        product_s = time.perf_counter() - started
    return product_s * len(blocks) * (len(blocks) + 1) / 2


@dataclass(frozen=True)
class _Best:
    """The k largest similarities of each row so far, and their columns."""

    values: Tensor
    indices: Tensor

    @classmethod
    def empty(cls, rows: int, k: int) -> _Best:
        return cls(torch.full((rows, k), -torch.inf), torch.zeros((rows, k), dtype=torch.int32))

    def merge(self, rows: slice, similarity: Tensor, first_column: int) -> None:
        """Add similarities [rows, columns]; columns are counted from `first_column`."""
        values, indices = self.values[rows], self.indices[rows]
        k = values.shape[1]
        # Most blocks hold new neighbours of few rows.
        changed = torch.nonzero(similarity.amax(dim=1) > values[:, -1]).flatten()
        if not len(changed):
            return
        top = similarity[changed].topk(min(k, similarity.shape[1]), dim=1)
        candidates = torch.cat([values[changed], top.values], dim=1)
        columns = torch.cat([indices[changed], (top.indices + first_column).int()], dim=1)
        kept = candidates.topk(k, dim=1)
        values[changed] = kept.values
        indices[changed] = columns.gather(1, kept.indices)


def _with_exact_distances(units: Tensor, indices: Tensor) -> Neighbours:
    distances = torch.empty(indices.shape)
    size = max(1, _GATHERED // max(1, indices.shape[1] * units.shape[1]))
    for block in _blocks(len(units), size):
        difference = units[indices[block].long()] - units[block][:, None]
        distances[block] = difference.norm(dim=2)
    order = distances.argsort(dim=1, stable=True)
    return Neighbours(
        indices=indices.gather(1, order).numpy(), distances=distances.gather(1, order).numpy()
    )


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Rows nearest to one picture, nearest first: int64 [k] and their distances float32 [k]."""

    rows: NDArray[np.int64]
    distances: NDArray[np.float32]


def nearest_to(
    query: Features,
    parts: Sequence[Features],
    k: int,
    is_wanted: NDArray[np.bool_] | None = None,
) -> Nearest:
    """Return the k rows that are nearest to a query [d].

    `parts` are arrays [m, d], such as mapped shards; rows are counted over all of them. Rows for
    which `is_wanted` [n] is False are left out. Distances are those of `nearest_neighbours`. A
    block of rows is in memory at a time: it is read once for the mean and once for the distances.
    """
    blocks = [part[block] for part in parts for block in _blocks(len(part), _SCANNED)]
    total = torch.zeros(len(query), dtype=torch.float64)
    for block in blocks:
        total += torch.from_numpy(block.astype(np.float32)).sum(dim=0)
    centre = (total / max(sum(map(len, blocks)), 1)).float()

    centred_query = torch.from_numpy(np.asarray(query, dtype=np.float32)) - centre
    cosines = [torch.empty(0)]
    for block in blocks:
        rows = torch.from_numpy(block.astype(np.float32)).sub_(centre)
        cosines.append((rows @ centred_query) / rows.norm(dim=1).clamp_min_(1e-12))
    similarity = torch.cat(cosines)
    if is_wanted is not None:
        similarity[torch.from_numpy(~is_wanted)] = -torch.inf

    # A cosine near 1 has few digits: the distances of somewhat more rows are computed directly.
    wanted = len(similarity) if is_wanted is None else int(is_wanted.sum())
    chosen = similarity.topk(min(4 * k + 16, wanted)).indices.numpy()
    near = torch.from_numpy(_rows_of(parts, chosen)) - centre
    units = near / near.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit_query = centred_query / centred_query.norm().clamp_min(1e-12)
    distances = (units - unit_query).norm(dim=1).numpy()
    order = np.lexsort((chosen, distances))[:k]
    return Nearest(rows=chosen[order], distances=distances[order])


def _rows_of(parts: Sequence[Features], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows that are counted over all parts, float32 [m, d]."""
    starts = np.cumsum([0, *map(len, parts)])
    places = np.searchsorted(starts, rows, side="right") - 1
    found = [parts[part][row - starts[part]] for part, row in zip(places, rows, strict=True)]
    return np.asarray(found, dtype=np.float32)


def far_from_all(neighbours: Neighbours) -> NDArray[np.bool_]:
    """Return True for each outlier: its mean distance is far above those of other rows, bool [n].

    The limit is the outer fence of Tukey 1977 (Exploratory Data Analysis): the third quartile plus
    three times the distance between the quartiles.
    """
    if not neighbours.distances.size:
        return np.zeros(len(neighbours), dtype=np.bool_)
    mean = neighbours.distances.mean(axis=1)
    first, third = np.quantile(mean, [0.25, 0.75])
    return np.asarray(mean > third + 3 * (third - first), dtype=np.bool_)


def _blocks(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
