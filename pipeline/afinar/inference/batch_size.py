"""How many pictures to score at once, found by trying where there is enough work to pay for it."""

from __future__ import annotations

import math
import time
from typing import Final

import numpy as np
import torch

from afinar.inference.predictor import Predictor
from afinar.models.networks.network import forward_batch

_SIZES: Final = {"cpu": (8, 16), "cuda": (32, 64, 128, 256, 512)}
_WORTH: Final = 4000  # pictures: trying costs fifty on a CPU
_SLOWER: Final = 1.1  # than the best so far: larger ones will be too


def choose_batch_size(predictor: Predictor, pictures: int) -> int:
    """Pictures per forward pass for a job of that many."""
    if pictures < _WORTH:
        return forward_batch(predictor.device)
    return fastest_batch(predictor, _SIZES[predictor.device.type])


def fastest_batch(predictor: Predictor, sizes: tuple[int, ...]) -> int:
    """The one of rising `sizes` that takes the least time for a picture."""
    best_s, best = math.inf, sizes[0]
    for size in sizes:
        each_s = _seconds_each(predictor, size)
        if each_s > _SLOWER * best_s:
            break
        if each_s < best_s:
            best_s, best = each_s, size
    return best


def _seconds_each(predictor: Predictor, size: int) -> float:
    side = predictor.version.stored_view.size
    images = np.zeros((size, side, side, 3), dtype=np.uint8)
    try:
        predictor(images)  # the first pass of a shape allocates, and chooses kernels
        started = time.perf_counter()
        predictor(images)
    except torch.OutOfMemoryError:
        return math.inf
    return (time.perf_counter() - started) / size
