"""Conversion of a picture in any of Pillow's modes to 8-bit RGB.

Pillow's `convert("RGB")` clips 16-bit samples at 255, turns floats below 1 into black and shows the
hidden colours of transparent pixels. This module scales samples and composites transparency.
Without an embedded colour profile (see `profiles`), CMYK becomes (1 - ink)(1 - black).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from afinar.pictures.profiles import ProfileConversion
from afinar.pictures.rejects import PictureError, Reason

_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2  # TIFF tags
# Samples scaled at a time: the float64 of a whole 89-megapixel picture would take 0.7 GB.
_BLOCK: Final = 1 << 20

# A PNG states its transparent colour at the depth of the file; Pillow gives samples of 8 bits.
_KEY_SCALE: Final = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


def rescale_png_transparency(image: ImageFile.ImageFile) -> None:
    """Scale the transparent colour of a PNG to the 8 bits of its samples; call before `load`."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not image.tile:
        return
    scale = _KEY_SCALE.get(str(image.tile[0][3]))
    if scale is not None:
        image.info["transparency"] = (
            tuple(int(part * scale) for part in key) if isinstance(key, tuple) else int(key * scale)
        )


def is_opaque_eight_bit(image: Image.Image) -> bool:
    """Return True for a loaded picture of 8-bit samples without transparency."""
    return not (_is_deep(image) or image.has_transparency_data)


def to_rgb(
    image: Image.Image,
    background: tuple[int, int, int],
    conversion: ProfileConversion | None = None,
) -> Image.Image:
    """Return a loaded picture as RGB, with transparent parts composited over `background`.

    `conversion` is applied to the colours before they are composited. Returns the picture itself if
    it is RGB and has no conversion. Raises PictureError for samples that are not finite.
    """
    if _is_deep(image):
        return _from_deep(image, background, conversion)
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(rgba if conversion is None else conversion.apply(rgba), mask=rgba)
        return canvas
    if conversion is not None:
        return conversion.apply(image)

    return image if image.mode == "RGB" else image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _from_deep(
    image: Image.Image, background: tuple[int, int, int], conversion: ProfileConversion | None
) -> Image.Image:
    """Convert a grey picture of 12, 16 or 32 bits, or of floats."""
    samples = np.asarray(image)
    if image.mode == "I" and _depth_of(image) == (32, False):
        samples = samples.view(np.uint32)  # Pillow gives unsigned samples as signed ones
    grey = Image.fromarray(_to_eight_bits(samples, _white_level(image, samples)))
    colours = grey.convert("RGB") if conversion is None else conversion.apply(grey)

    key = image.info.get("transparency")
    if not isinstance(key, int):
        return colours
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(colours, mask=Image.fromarray(samples != key))
    return canvas


def _white_level(image: Image.Image, samples: NDArray[Any]) -> float:
    """Return the sample value that becomes 255.

    1 for floats, or 255 if any is above 1. For integers the maximum of the depth that the file
    states, such as 4095 for 12 bits; for 32 bits that of 16 bits if no sample is larger.
    """
    if image.mode == "F":
        if not np.isfinite(samples).all():
            raise PictureError(Reason.CORRUPT, "samples that are not finite")
        return 1.0 if samples.max(initial=0.0) <= 1.0 else 255.0

    depth = _depth_of(image)
    if image.mode == "I" and depth.bits not in {12, 16}:
        if samples.max(initial=0) <= 65535:
            return 65535.0
        return float(np.iinfo(samples.dtype).max)
    return float(2 ** (depth.bits - depth.is_signed) - 1)


class _Depth(NamedTuple):
    bits: int
    is_signed: bool


def _depth_of(image: Image.Image) -> _Depth:
    """Return the depth of a TIFF's samples; 16 bits, unsigned, for other formats."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return _Depth(16, is_signed=False)
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))
    sample_format = image.tag_v2.get(_SAMPLE_FORMAT, (1,))
    return _Depth(int(bits[0]), sample_format[0] == _SIGNED)


def _to_eight_bits(samples: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """Return samples * 255 / white, rounded and clipped to uint8."""
    result = np.empty(samples.shape, dtype=np.uint8)
    rows = max(1, _BLOCK // max(1, samples.shape[1]))
    for top in range(0, len(samples), rows):
        # float64, since the product of large float32 samples would overflow.
        scaled = samples[top : top + rows] * np.float64(255.0 / white)
        result[top : top + rows] = np.clip(np.rint(scaled), 0, 255)
    return result
