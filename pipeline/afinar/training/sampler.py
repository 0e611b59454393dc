"""Order of the samples of an epoch, and its division into batches and workers' slices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afinar.config.train import Sampling
from afinar.training.rng import generator

RowNumbers = NDArray[np.int64]


class EpochOrder(NamedTuple):
    """Order of the samples in one epoch.

    `order` int64 [m] holds positions in the split: a permutation of it, or balanced draws from it.
    `windows` int64 [m] holds, for each entry of the order, the number of its window; it never
    decreases.
    """

    order: RowNumbers
    windows: RowNumbers


def epoch_order(
    shards: RowNumbers, seed: int, epoch: int, window: int, chosen: RowNumbers | None = None
) -> EpochOrder:
    """Shuffle the shards, then shuffle the samples within every `window` consecutive shards.

    `shards` int64 [n] is the shard of each sample. A shuffle over all samples would read every
    shard in every batch. Here a reader needs the shards of at most two windows at a time: those of
    the current window and, in a batch that crosses a boundary, those of the next. `chosen` int64
    [m] are the positions of the samples that the epoch uses, with repetitions; by default each
    sample is used once.

    Example: with shards [0, 0, 1, 1, 2, 2, 3, 3], window 2, seed 0 and epoch 0 the result is order
    [5, 4, 0, 1, 6, 3, 2, 7] with windows [0, 0, 0, 0, 1, 1, 1, 1]. The shuffle of the shards put 0
    and 2 into window 0, that is samples 0, 1, 4 and 5, and shards 1 and 3 into window 1.
    """
    if chosen is None:
        chosen = np.arange(len(shards))
    rng = generator(seed, epoch, "order")
    present, shard_index = np.unique(shards[chosen], return_inverse=True)

    # The shard that comes k-th in the shuffled order belongs to window k // window.
    window_of_shard = np.empty(len(present), dtype=np.int64)
    window_of_shard[rng.permutation(len(present))] = np.arange(len(present)) // window
    windows = window_of_shard[shard_index]

    # Sort by window, and by a random number within a window.
    order: RowNumbers = np.lexsort((rng.random(len(chosen)), windows))
    return EpochOrder(chosen[order], windows[order])


def epoch_length(samples: int, classes: int, sampling: Sampling) -> int:
    """Return how many samples an epoch uses.

    With balanced sampling that is the size of the split, rounded up to a multiple of the number of
    classes. Example: 100 samples of 3 classes make epochs of 102, with 34 of each class.
    """
    return samples if sampling == "natural" else -(-samples // classes) * classes


def balanced_draws(targets: RowNumbers, seed: int, epoch: int) -> RowNumbers:
    """Choose samples so that an epoch has the same number of each class; int64 [m], ascending.

    `targets` int64 [n] are the class numbers of the samples; every class has one. Within a class
    all samples are used equally often, and those that are used once more, to fill up the number,
    are drawn anew in each epoch. The draws are a function of (seed, epoch), so that any number of
    workers makes the same ones, and a resumed training too.

    Example: of targets [0, 0, 0, 0, 1, 1] an epoch uses 3 of the first four samples, and 3 of the
    last two: each of them once, and one of them once more.
    """
    counts = np.bincount(targets)
    of_class = epoch_length(len(targets), len(counts), "balanced") // len(counts)

    # Rank of each sample within its class, in random order.
    order = np.lexsort((generator(seed, epoch, "balance").random(len(targets)), targets))
    first = np.cumsum(counts) - counts
    ranks = np.empty(len(targets), dtype=np.int64)
    ranks[order] = np.arange(len(targets)) - first[targets[order]]

    uses = of_class // counts[targets] + (ranks < of_class % counts[targets])
    return np.repeat(np.arange(len(targets)), uses)


def count_repeats(order: RowNumbers) -> RowNumbers:
    """Return how often each entry of an order occurs before it, int64 [m].

    Example: [7, 2, 7, 7] gives [0, 0, 1, 2].
    """
    by_value = np.argsort(order, kind="stable")
    _, first, counts = np.unique(order[by_value], return_index=True, return_counts=True)
    repeats = np.empty(len(order), dtype=np.int64)
    repeats[by_value] = np.arange(len(order)) - np.repeat(first, counts)
    return repeats


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the fewest steps that use every sample once with at most `batch_size` per step."""
    return -(-samples // batch_size)


def global_batches(order: RowNumbers, batch_size: int) -> list[RowNumbers]:
    """Divide an order into batches whose sizes differ by at most one.

    A small last batch would distort the statistics of BatchNorm. Example: 21 samples with batch
    size 9 make batches of 7, 7 and 7, not of 9, 9 and 3.
    """
    return np.array_split(order, steps_per_epoch(len(order), batch_size))


class GlobalBatch(NamedTuple):
    """Samples of one step, over all workers: positions in the split int64 [n].

    `repeats` int64 [n] counts how often the epoch used each of them before (`count_repeats`).
    """

    positions: RowNumbers
    repeats: RowNumbers


def epoch_batches(epoch: EpochOrder, batch_size: int) -> list[GlobalBatch]:
    """Return the batches of an epoch."""
    positions = global_batches(epoch.order, batch_size)
    repeats = global_batches(count_repeats(epoch.order), batch_size)
    return [GlobalBatch(*batch) for batch in zip(positions, repeats, strict=True)]


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
