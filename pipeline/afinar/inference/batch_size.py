"""Choice of the batch size: measured once per model and device, and noted on the machine."""

from __future__ import annotations

import math
import platform
import time
from typing import Final

import torch

from afinar.config.base import fingerprint
from afinar.inference.predictor import Predictor
from afinar.models.networks.network import default_batch_size
from afinar.models.networks.precision import tf32_disabled
from afinar.storage.cache import Cache, read_note, write_note

_SIZES: Final = {"cpu": (8, 16), "cuda": (32, 64, 128, 256, 512)}
_MIN_PICTURES: Final = 4000  # the measurement costs as much as fifty pictures on a CPU
_MAX_SLOWDOWN: Final = 1.1  # a size this much slower than the best ends the search


def choose_batch_size(predictor: Predictor, pictures: int, cache: Cache | None = None) -> int:
    """Return the number of pictures per forward pass for a job of `pictures`.

    A job that is large enough to repay the measurement measures it, and notes it in `cache` for
    later jobs of any size.
    """
    cache, name = cache or Cache(), f"label-batch-{_identity(predictor)}"
    sizes = _SIZES[predictor.device.type]
    noted = read_note(cache, name)
    if noted is not None and noted.isdigit() and int(noted) in sizes:
        return int(noted)
    if pictures < _MIN_PICTURES:
        return default_batch_size(predictor.device)
    size = fastest_batch_size(predictor, sizes)
    write_note(cache, name, str(size).encode())
    return size


def _identity(predictor: Predictor) -> str:
    """Return a digest of the model, the device and the library, which determine the best size."""
    device = predictor.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    dtype = str(next(predictor.network.parameters()).dtype)
    engine = type(predictor.network).__name__  # torch's, or OpenVINO's
    return fingerprint([predictor.version.id, name, dtype, engine, torch.__version__])[:32]


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
    try:
        with torch.inference_mode(), tf32_disabled(predictor.device):
            # A GPU copies the pictures of the next batch while it computes one.
            pixels = torch.zeros((size, side, side, 3), dtype=torch.uint8, device=predictor.device)
            # The first pass of a shape allocates memory and selects kernels.
            predictor.compute(pixels)[0].cpu()
            started = time.perf_counter()
            predictor.compute(pixels)[0].cpu()
    except torch.OutOfMemoryError:
        return math.inf
    return (time.perf_counter() - started) / size
