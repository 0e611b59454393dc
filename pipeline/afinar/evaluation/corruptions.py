"""Common corruptions of pictures at three strengths, as functions of uint8 batches.

After Hendrycks and Dietterich 2019, Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations, arXiv 1903.12261: what blurred, compressed, dark, flat and tilted pictures cost.
Each picture is corrupted by itself and without random numbers, so the results do not depend on
batches.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Picture = NDArray[np.uint8]

STRENGTHS: Final = (1, 2, 3)
_REFERENCE_PX: Final = 224  # side of a picture to which the widths of blur refer


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One corruption at one strength. `setting` describes it for people."""

    name: str
    strength: int
    setting: str

    def __call__(self, images: Picture) -> Picture:
        """Return corrupted copies of pictures, uint8 [n, size, size, 3]."""
        function, values = _FUNCTIONS[self.name]
        value = values[self.strength - 1]
        corrupted = [function(image, value) for image in images]
        return np.stack(corrupted) if corrupted else images.copy()


def corruptions(names: tuple[str, ...]) -> list[Corruption]:
    """Return the corruptions of these names at all strengths."""
    return [
        Corruption(
            name=name,
            strength=strength,
            setting=_SETTINGS[name].format(_FUNCTIONS[name][1][strength - 1]),
        )
        for name in names
        for strength in STRENGTHS
    ]


def _blur(image: Picture, radius_px: float) -> Picture:
    scale = image.shape[0] / _REFERENCE_PX
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius_px * scale))
    return np.asarray(blurred)


def _jpeg(image: Picture, quality: float) -> Picture:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="JPEG", quality=int(quality))
    with Image.open(sink, formats=("JPEG",)) as decoded:
        return np.asarray(decoded)


def _brightness(image: Picture, factor: float) -> Picture:
    return _rounded(image * np.float32(factor))


def _contrast(image: Picture, factor: float) -> Picture:
    """Move all values towards the mean luminance of the picture."""
    mean = (image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).mean()
    return _rounded(mean + (image - mean) * np.float32(factor))


def _rotation(image: Picture, degrees: float) -> Picture:
    """Rotate about the centre. Corners are filled with the mirrored picture, not with black."""
    side = image.shape[0]
    margin = side // 4  # more than the corners of a square move at 20 degrees
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    rotated = Image.fromarray(padded).rotate(degrees, Image.Resampling.BILINEAR)
    return np.asarray(rotated)[margin : margin + side, margin : margin + side]


def _rounded(values: NDArray[np.floating]) -> Picture:
    rounded: Picture = np.rint(values).clip(0, 255).astype(np.uint8)
    return rounded


_FUNCTIONS: Final[dict[str, tuple[Callable[[Picture, float], Picture], tuple[float, ...]]]] = {
    "blur": (_blur, (1.0, 2.0, 4.0)),
    "jpeg": (_jpeg, (50, 25, 10)),
    "brightness": (_brightness, (0.7, 0.5, 0.3)),
    "contrast": (_contrast, (0.7, 0.5, 0.3)),
    "rotation": (_rotation, (5, 10, 20)),
}
_SETTINGS: Final = {
    "blur": "radius {:g} px at 224 px",
    "jpeg": "quality {:g}",
    "brightness": "times {:g}",
    "contrast": "times {:g}",
    "rotation": "{:g}°",
}
