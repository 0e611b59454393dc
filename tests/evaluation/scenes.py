"""Pictures with structure, as photographs have it: copies of them can be told from others."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def scene(seed: int, width: int = 300, height: int = 220) -> Image.Image:
    """Return a picture with structure at several scales, as a photograph has."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24):
        noise = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer) / 4
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, quality: int) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, format="JPEG", quality=quality)
    return Image.open(sink)
