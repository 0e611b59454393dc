"""Order of the samples of an epoch, and its division into batches and workers' slices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afinar.training.rng import generator

RowNumbers = NDArray[np.int64]


class EpochOrder(NamedTuple):
    """Order of the samples in one epoch.

    `order` int64 [n] is a permutation of range(n). `windows` int64 [n] holds, for each position in
    the order, the number of its window; it never decreases.
    """

    order: RowNumbers
    windows: RowNumbers


def epoch_order(shards: RowNumbers, seed: int, epoch: int, window: int) -> EpochOrder:
    """Shuffle the shards, then shuffle the samples within every `window` consecutive shards.

    `shards` int64 [n] is the shard of each sample. A shuffle over all samples would read every
    shard in every batch. Here a reader needs the shards of at most two windows at a time: those of
    the current window and, in a batch that crosses a boundary, those of the next.

    Example: with shards [0, 0, 1, 1, 2, 2, 3, 3], window 2, seed 0 and epoch 0 the result is order
    [5, 4, 0, 1, 6, 3, 2, 7] with windows [0, 0, 0, 0, 1, 1, 1, 1]. The shuffle of the shards put 0
    and 2 into window 0, that is samples 0, 1, 4 and 5, and shards 1 and 3 into window 1.
    """
    rng = generator(seed, epoch, "order")
    present, shard_index = np.unique(shards, return_inverse=True)

    # The shard that comes k-th in the shuffled order belongs to window k // window.
    window_of_shard = np.empty(len(present), dtype=np.int64)
    window_of_shard[rng.permutation(len(present))] = np.arange(len(present)) // window
    windows = window_of_shard[shard_index]

    # Sort by window, and by a random number within a window.
    order: RowNumbers = np.lexsort((rng.random(len(shards)), windows))
    return EpochOrder(order, windows[order])


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the fewest steps that use every sample once with at most `batch_size` per step."""
    return -(-samples // batch_size)


def global_batches(order: RowNumbers, batch_size: int) -> list[RowNumbers]:
    """Divide an order into batches whose sizes differ by at most one.

    A small last batch would distort the statistics of BatchNorm. Example: 21 samples with batch
    size 9 make batches of 7, 7 and 7, not of 9, 9 and 3.
    """
    return np.array_split(order, steps_per_epoch(len(order), batch_size))


def rank_slice(batch: RowNumbers, rank: int, workers: int) -> RowNumbers:
    """Return the part of a global batch that one worker computes.

    Example: of [5, 3, 8, 1, 6] rank 0 of 2 takes [5, 8, 6] and rank 1 takes [3, 1].
    """
    return batch[rank::workers]


def window_balance(epoch: EpochOrder, targets: RowNumbers) -> float:
    """Return the classes in a window, as a share of those in as many samples of a full shuffle.

    `targets` int64 [n] are the class numbers of the samples. The result is the mean over windows: 1
    if shards hold all classes alike, less if each holds a few. A random draw of m of n samples has
    the class k, with n_k samples, with a probability of about 1 - (1 - n_k / n)^m.

    Example: two windows of 50 samples, each with one of two classes, have half of the classes.
    """
    counts = np.bincount(targets)
    shares = counts[counts > 0] / len(targets)
    ratios = []
    for window in range(int(epoch.windows[-1]) + 1):
        chosen = targets[epoch.order[epoch.windows == window]]
        expected = (1 - (1 - shares) ** len(chosen)).sum()
        ratios.append(len(np.unique(chosen)) / expected)
    return float(np.mean(ratios))
