"""Choice of the batch size: measured on a job that is large enough to repay the measurement."""

from __future__ import annotations

import math
import time
from typing import Final

import numpy as np
import torch

from afinar.inference.predictor import Predictor
from afinar.models.networks.network import default_batch_size

_SIZES: Final = {"cpu": (8, 16), "cuda": (32, 64, 128, 256, 512)}
_MIN_PICTURES: Final = 4000  # the measurement costs as much as fifty pictures on a CPU
_MAX_SLOWDOWN: Final = 1.1  # a size this much slower than the best ends the search


def choose_batch_size(predictor: Predictor, pictures: int) -> int:
    """Return the number of pictures per forward pass for a job of `pictures`."""
    if pictures < _MIN_PICTURES:
        return default_batch_size(predictor.device)
    return fastest_batch_size(predictor, _SIZES[predictor.device.type])


def fastest_batch_size(predictor: Predictor, sizes: tuple[int, ...]) -> int:
    """Return the one of ascending `sizes` with the shortest time per picture.

    Example: 32 takes 1.0 ms per picture, 64 takes 0.8 ms and 128 takes 0.9 ms, more than 1.1 x the
    best time of 0.8 ms. The search ends without trying 256, and the result is 64.
    """
    best_s, best_size = math.inf, sizes[0]

    for size in sizes:
        picture_s = _seconds_per_picture(predictor, size)
        if picture_s > _MAX_SLOWDOWN * best_s:
            break
        if picture_s < best_s:
            best_s, best_size = picture_s, size
    return best_size


def _seconds_per_picture(predictor: Predictor, size: int) -> float:
    """Measure one forward pass of `size` pictures. Return infinity if it does not fit in memory."""
    side = predictor.version.stored_view.size
    images = np.zeros((size, side, side, 3), dtype=np.uint8)
    try:
        predictor(images)  # the first pass of a shape allocates memory and selects kernels
        started = time.perf_counter()
        predictor(images)
    except torch.OutOfMemoryError:
        return math.inf
    return (time.perf_counter() - started) / size
