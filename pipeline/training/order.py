"""Which samples make which step: pure functions, the same for any number of workers."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def epoch_order(samples: int, seed: int, epoch: int) -> Rows:
    """A permutation of range(samples), a function of (seed, epoch) alone."""
    key = int.from_bytes(hashlib.sha256(f"order:{seed}:{epoch}".encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key)).permutation(samples)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Steps that show every sample once, none of them larger than `batch_size`."""
    return -(-samples // batch_size)


def global_batches(order: Rows, batch_size: int) -> list[Rows]:
    """Cut an order into steps of nearly equal size: every sample once, and no tiny last batch for BatchNorm."""
    return np.array_split(order, steps_per_epoch(len(order), batch_size))


def share(batch: Rows, rank: int, workers: int) -> Rows:
    """The part of a global batch that one worker computes; the parts' union is the batch."""
    return batch[rank::workers]


def coin(seed: int, epoch: int, sample_ids: list[str], salt: str) -> NDArray[np.bool_]:
    """One fair coin per sample: a function of (seed, epoch, sample_id) alone, not of batch or worker."""
    return np.array(
        [hashlib.sha256(f"{salt}:{seed}:{epoch}:{one}".encode()).digest()[0] & 1 for one in sample_ids],
        dtype=bool,
    )
