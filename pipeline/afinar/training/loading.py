"""Batches in order, gathered ahead of whoever computes with them, from shards fetched a window ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from afinar.dataset.reader import Dataset
from afinar.training.sampler import Rows

_AHEAD: Final = 3  # batches in flight per reader: memory for a reader's hiccup, and no more
_MOST_READERS: Final = 8

Work = TypeVar("Work")
Gathered = TypeVar("Gathered")


def readers(device: str, decodes: bool) -> int:
    """Threads that gather: none on a CPU, whose cores compute; on a GPU's host one, or several where each decodes."""
    if device == "cpu":
        return 0
    return min(_MOST_READERS, os.cpu_count() or 1) if decodes else 1


def load(
    gather: Callable[[Work], Gathered], batches: Sequence[Work], threads: int
) -> Generator[tuple[Work, Gathered], None, None]:
    """Each batch with what `gather` made of them, in order.

    Close the iterator when it is not read to its end: threads may be at work.
    """
    if not threads:
        for batch in batches:
            yield batch, gather(batch)
        return
    waiting: deque[tuple[Work, Future[Gathered]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(gather, batch)))
                if len(waiting) >= threads * _AHEAD:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        finally:
            for _, future in waiting:
                future.cancel()


@dataclass(frozen=True)
class ShardWindows:
    """Where training samples lie: `shards` int [n] is each one's shard; `size` shards make a window of the shuffle."""

    dataset: Dataset
    shards: Rows
    size: int

    @classmethod
    def of(cls, dataset: Dataset, rows: Rows, window_bytes: int) -> ShardWindows:
        """Windows of at most `window_bytes`, and of one shard at least. A function of the manifest."""
        largest = max(ref.bytes for ref in dataset.shards)
        return cls(dataset, dataset.shard_numbers[rows], max(1, window_bytes // largest))

    @contextmanager
    def ahead(
        self, order: Rows, windows: Rows, batches: Sequence[Rows]
    ) -> Iterator[Callable[[int], None]]:
        """What to call with a batch's number before it is read: it has the next window's shards fetched."""
        if not self.dataset.is_remote:
            yield lambda _: None
            return
        last = windows[
            np.cumsum([len(one) for one in batches]) - 1
        ]  # a batch's own window, the later one of two
        asked: set[int] = set()
        with ThreadPoolExecutor(1) as pool:

            def enter(batch: int) -> None:
                coming = int(last[batch]) + 1
                if coming not in asked:
                    asked.add(coming)
                    for shard in np.unique(self.shards[order[windows == coming]]).tolist():
                        pool.submit(
                            self.dataset.fetch, shard
                        )  # should it fail, so does the reading, which says so

            try:
                yield enter
            finally:
                pool.shutdown(cancel_futures=True)


def _first(waiting: deque[tuple[Work, Future[Gathered]]]) -> tuple[Work, Gathered]:
    batch, future = waiting.popleft()
    return batch, future.result()
