"""Loading of batches in order by threads, and prefetching of remote shards one window ahead."""

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
from afinar.training.sampler import EpochOrder, RowNumbers

_BATCHES_PER_THREAD: Final = 3  # loaded and not yet used: evens out slow reads, bounds memory
_MAX_THREADS: Final = 8

Work = TypeVar("Work")
Loaded = TypeVar("Loaded")


def num_loader_threads(device: str, decodes: bool) -> int:
    """Return the number of threads that load batches for a device type.

    CPU: 0, because its cores compute and a thread would only compete with them. GPU: 1 if loading
    is a copy of mapped pixels, up to 8 if pictures are decoded.
    """
    if device == "cpu":
        return 0
    return min(_MAX_THREADS, os.cpu_count() or 1) if decodes else 1


def load_batches(
    load: Callable[[Work], Loaded], batches: Sequence[Work], threads: int
) -> Generator[tuple[Work, Loaded], None, None]:
    """Yield each batch with the result of `load`, in order.

    `threads` load ahead; with 0 a batch is loaded when it is requested. Close the generator if it
    is not read to its end: threads may be loading.
    """
    if not threads:
        for batch in batches:
            yield batch, load(batch)
        return

    pending: deque[tuple[Work, Future[Loaded]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for batch in batches:
                pending.append((batch, pool.submit(load, batch)))
                if len(pending) >= threads * _BATCHES_PER_THREAD:
                    yield _pop_result(pending)
            while pending:
                yield _pop_result(pending)
        finally:
            for _, future in pending:
                future.cancel()


def _pop_result(pending: deque[tuple[Work, Future[Loaded]]]) -> tuple[Work, Loaded]:
    batch, future = pending.popleft()
    return batch, future.result()


@dataclass(frozen=True)
class ShardWindows:
    """Windows of the shuffle, `size` shards each. `shards` int64 [n] is each sample's shard."""

    dataset: Dataset
    shards: RowNumbers
    size: int

    @classmethod
    def of(cls, dataset: Dataset, rows: RowNumbers, window_bytes: int) -> ShardWindows:
        """Return windows of at most `window_bytes`, but at least one shard.

        The size follows from the manifest's largest shard alone, so that all workers agree on it.
        """
        largest = max(ref.bytes for ref in dataset.shards)
        return cls(dataset, dataset.shard_numbers[rows], max(1, window_bytes // largest))

    @contextmanager
    def prefetch_windows(
        self, epoch: EpochOrder, batches: Sequence[RowNumbers]
    ) -> Iterator[Callable[[int], None]]:
        """Yield a callback; calling it with a batch number prefetches the next window's shards.

        `batches` are the global batches of the epoch. Call it before a batch is loaded. The
        callback does nothing for a local dataset, whose shards are memory-mapped.
        """
        if not self.dataset.is_remote:
            yield lambda _: None
            return

        # Window of the last sample of each batch: a batch may cross a boundary.
        last_positions = np.cumsum([len(batch) for batch in batches]) - 1
        window_of_batch = epoch.windows[last_positions]
        requested: set[int] = set()

        with ThreadPoolExecutor(1) as pool:

            def on_batch(number: int) -> None:
                window = int(window_of_batch[number]) + 1
                if window in requested:
                    return
                requested.add(window)
                for shard in np.unique(self.shards[epoch.order[epoch.windows == window]]).tolist():
                    # An error is ignored here: loading fetches the shard again and raises it.
                    pool.submit(self.dataset.fetch, shard)

            try:
                yield on_batch
            finally:
                pool.shutdown(cancel_futures=True)
