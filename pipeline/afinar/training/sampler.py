"""Which samples make which step: pure functions, the same for any number of workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from afinar.training.rng import generator

Rows = NDArray[np.int64]


def epoch_order(shards: Rows, seed: int, epoch: int, window: int) -> tuple[Rows, Rows]:
    """The order of one epoch: shards shuffled, then samples within every `window` of them.

    `shards` int [n] is each sample's shard. Returns the order, a permutation of range(n), and the number of
    the window that each place of it falls into, rising. A function of its arguments alone: who reads it
    needs no more than two windows of shards at hand.
    """
    draw = generator(seed, epoch, "order")
    present, of_sample = np.unique(shards, return_inverse=True)
    place = np.empty(len(present), dtype=np.int64)
    place[draw.permutation(len(present))] = np.arange(len(present)) // window
    windows = place[of_sample]
    order: Rows = np.lexsort((draw.random(len(shards)), windows))
    return order, windows[order]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Steps that show every sample once, none of them larger than `batch_size`."""
    return -(-samples // batch_size)


def global_batches(order: Rows, batch_size: int) -> list[Rows]:
    """Cut an order into steps of nearly equal size: every sample once, and no tiny last batch for BatchNorm."""
    return np.array_split(order, steps_per_epoch(len(order), batch_size))


def share(batch: Rows, rank: int, workers: int) -> Rows:
    """The part of a global batch that one worker computes; the parts' union is the batch."""
    return batch[rank::workers]
