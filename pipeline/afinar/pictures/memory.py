"""Estimate of the memory that decoding a picture takes, from its header.

A file of a few kilobytes may state 89 megapixels. Pillow stores 1 to 4 bytes of each; codecs and
conversions hold several copies at once. The factors were measured with Pillow 13 (peak of a
process, pictures of 80 megapixels), and round up.
"""

from __future__ import annotations

import math
from typing import Final

from PIL import ImageFile, JpegImagePlugin, TiffImagePlugin

_ONE_BYTE: Final = {"1", "L", "P"}
_RGB_BYTES: Final = 4  # of an RGB or RGBA pixel in Pillow's memory
_ROWS_PER_STRIP: Final = 278  # TIFF tag
# Bytes of a pixel that the codec of a format holds beside Pillow's picture.
_UNTIL_CLOSED: Final = {"WEBP": 14.0, "AVIF": 6.0}
_PER_BAND: Final = {"JPEG2000": 5.0, "SGI": 1.0}
_COEFFICIENT_BYTES: Final = 2  # of a progressive JPEG, which is decoded once all scans are read


def estimate_bytes(image: ImageFile.ImageFile, width: int, height: int) -> float:
    """Return the bytes that loading and converting a picture to RGB takes.

    `width` and `height` are those of the file; a JPEG may have a smaller size after `draft`.
    """
    pixels, drafted = width * height, math.prod(image.size)
    stored = 1 if image.mode in _ONE_BYTE else 2 if image.mode.startswith("I;16") else _RGB_BYTES
    conversion = drafted * _conversion_bytes(image, stored)
    decoding = pixels * _decoding_bytes(image)
    kept = pixels * _UNTIL_CLOSED.get(str(image.format), 0.0)
    return drafted * stored + kept + max(conversion, decoding)


def _conversion_bytes(image: ImageFile.ImageFile, stored: int) -> int:
    """Return the bytes per pixel of the copies that `to_rgb` makes."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return 0
    # Opaque pictures of 8 bits are resized before their profile is applied.
    profiled = 2 * _RGB_BYTES if image.info.get("icc_profile") else 0
    if image.mode == "F" or image.mode.startswith("I"):
        return stored + 1 + _RGB_BYTES + profiled  # samples, grey, RGB
    if image.mode == "RGBA":
        return _RGB_BYTES + profiled
    if image.mode in {"LA", "La", "PA", "RGBa"} or "transparency" in image.info:
        return 2 * _RGB_BYTES + profiled
    return _RGB_BYTES


def _decoding_bytes(image: ImageFile.ImageFile) -> float:
    """Return the bytes per pixel of the file that a codec holds until the picture is loaded."""
    bands = len(image.getbands())
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.info.get("progressive"):
        areas = [across * down for _, across, down, _ in image.layer]
        return _COEFFICIENT_BYTES * sum(areas) / max([*areas, 1])
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.height:
        rows = image.tag_v2.get(_ROWS_PER_STRIP, image.height)
        return bands * min(1.0, rows / image.height) if isinstance(rows, int) else 0.0
    return bands * _PER_BAND.get(str(image.format), 0.0)
