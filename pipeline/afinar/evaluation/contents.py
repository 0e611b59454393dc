"""The distinct contents of a dataset: copies of the same file are one picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.sources.entry import SPLITS


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The distinct contents of a dataset: rows of the same content are one picture here.

    `rows` int64 [n] is the index row of each content; `of_row` int64 [rows of the index] the
    content of each index row. `labels` and `splits` int64 [n] are numbers, -1 for none; a content
    with two labels has none.
    """

    rows: NDArray[np.int64]
    of_row: NDArray[np.int64]
    labels: NDArray[np.int64]
    splits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


def distinct_ids(dataset: Dataset) -> pa.ChunkedArray:
    """Return the content hash of each distinct content, in the order of `find_contents`."""
    return dataset.index.column("sample_id").take(pa.array(find_contents(dataset).rows))


def find_contents(dataset: Dataset) -> Contents:
    """Return the distinct contents of a dataset, in the order of their first index rows."""
    index = dataset.index
    ids = index.column("sample_id").to_numpy(zero_copy_only=False)
    _, rows, of_row = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(rows)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    of_row = rank[of_row]
    return Contents(
        rows=rows[order].astype(np.int64),
        of_row=of_row,
        labels=_agreed(_numbers(index.column("label"), dataset.classes), of_row, len(rows)),
        splits=_agreed(_numbers(index.column("split"), list(SPLITS)), of_row, len(rows)),
    )


def _numbers(column: pa.ChunkedArray, names: list[str]) -> NDArray[np.int64]:
    numbers = pc.fill_null(pc.index_in(column, pa.array(names, pa.string())), -1)
    result: NDArray[np.int64] = numbers.to_numpy().astype(np.int64)
    return result


def _agreed(
    values: NDArray[np.int64], of_row: NDArray[np.int64], contents: int
) -> NDArray[np.int64]:
    """Return the value of each content; -1 if its rows have none, or several different ones."""
    known = values >= 0
    highest, lowest = np.full(contents, -1), np.full(contents, np.iinfo(np.int64).max)
    np.maximum.at(highest, of_row[known], values[known])
    np.minimum.at(lowest, of_row[known], values[known])
    return np.where(highest == lowest, highest, -1)
