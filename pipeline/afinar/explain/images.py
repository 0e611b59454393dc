"""Pictures of explanations: encoded files, colour maps, overlays, grids, measures."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]

# Anchors of a colour map whose lightness rises evenly: dark violet, red, orange, pale yellow.
_HEAT: Final = np.array(
    [[13, 8, 60], [110, 20, 110], [200, 55, 80], [245, 140, 40], [250, 245, 160]], np.float32
)
_FRAME_MS: Final = 120
_LAST_FRAME_MS: Final = 2000
_GAP_PX: Final = 2
_GREY: Final = 127


def encode_png(image: Pixels) -> bytes:
    """Return uint8 [height, width, 3] or [height, width] as a PNG, which loses nothing."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="PNG", optimize=True)
    return sink.getvalue()


def decode_png(data: bytes) -> Pixels:
    """Return the pixels of a PNG that `encode_png` made, uint8 [height, width, 3]."""
    pixels: Pixels = np.array(Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB"))
    return pixels


def encode_animation(frames: Sequence[Pixels]) -> bytes:
    """Return frames uint8 [height, width, 3] as an animated WebP that stays at its last frame."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    durations = [_FRAME_MS] * len(others) + [_LAST_FRAME_MS]
    sink = io.BytesIO()
    first.save(
        sink, format="WEBP", save_all=True, append_images=others, duration=durations, loop=0,
        quality=60, method=3,
    )  # fmt: skip
    return sink.getvalue()


def colour_map(values: Values) -> Pixels:
    """Return values of 0 to 1 [height, width] as colours uint8 [height, width, 3]."""
    places = np.clip(values, 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(places.astype(np.int64), len(_HEAT) - 2)
    share = (places - low)[..., None]
    colours: Pixels = (_HEAT[low] * (1 - share) + _HEAT[low + 1] * share).round().astype(np.uint8)
    return colours


def overlay(image: Pixels, heat: Values) -> Pixels:
    """Return a picture in grey under the colours of a map of 0 to 1 of the same size."""
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    mixed: Pixels = (0.45 * grey + 0.55 * colour_map(heat)).clip(0, 255).astype(np.uint8)
    return mixed


def normalized(values: Values) -> Values:
    """Return values scaled to 0 … 1; a constant map becomes zeros."""
    low, high = float(values.min()), float(values.max())
    scaled: Values = ((values - low) / (high - low) if high > low else values * 0).astype(
        np.float32
    )
    return scaled


def resize_map(values: Tensor, size: int) -> Tensor:
    """Return maps [n, h, w] as [n, size, size], bilinear."""
    resized: Tensor = F.interpolate(
        values[:, None], (size, size), mode="bilinear", align_corners=False
    )[:, 0]
    return resized


def grid(images: Sequence[Pixels], columns: int = 0) -> Pixels:
    """Return pictures of one size as one picture, row by row, with a grey gap."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width = images[0].shape[:2]
    shape = (rows * (height + _GAP_PX) - _GAP_PX, columns * (width + _GAP_PX) - _GAP_PX, 3)
    sheet = np.full(shape, _GREY, dtype=np.uint8)
    for number, image in enumerate(images):
        top = (number // columns) * (height + _GAP_PX)
        left = (number % columns) * (width + _GAP_PX)
        sheet[top : top + height, left : left + width] = image
    return sheet


def blurred(pixels: Tensor, sigma_px: float) -> Tensor:
    """Return pixels [n, size, size, 3] under a Gaussian blur."""
    radius = max(1, math.ceil(2.5 * sigma_px))
    places = torch.arange(-radius, radius + 1, dtype=torch.float32, device=pixels.device)
    kernel = torch.exp(-(places**2) / (2 * sigma_px**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    image = pixels.permute(0, 3, 1, 2)
    image = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    image = F.conv2d(image, kernel[:, :, None, :], groups=3)
    image = F.conv2d(image, kernel[:, :, :, None], groups=3)
    return image.permute(0, 2, 3, 1)


def total_variation(image: Pixels) -> float:
    """Return the mean absolute difference of neighbouring pixels, in shares of the range."""
    values = image.astype(np.float32) / 255
    across = np.abs(np.diff(values, axis=1)).mean()
    return float((across + np.abs(np.diff(values, axis=0)).mean()) / 2)


def structural_similarity(first: Pixels, second: Pixels, window: int = 7) -> float:
    """Return the mean SSIM of two pictures over uniform windows (Wang et al. 2004).

    doi 10.1109/TIP.2003.819861, with its constants 0.01 and 0.03.
    """
    x, y = (
        torch.from_numpy(image.astype(np.float64) / 255).permute(2, 0, 1)[None]
        for image in (first, second)
    )

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, window, stride=1)

    # The sample covariance, as scikit-image has it.
    factor = window**2 / (window**2 - 1)
    mean_x, mean_y = mean(x), mean(y)
    var_x = factor * (mean(x * x) - mean_x**2)
    var_y = factor * (mean(y * y) - mean_y**2)
    covariance = factor * (mean(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return float(similarity.mean())
