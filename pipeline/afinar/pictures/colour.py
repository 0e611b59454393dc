"""From any of Pillow's modes to 8-bit RGB, without what a plain `convert("RGB")` gets silently wrong.

That call clips 16-bit samples at 255, turns floats below 1 into black and shows the hidden colours of
transparent pixels. Embedded colour profiles are not applied: CMYK becomes (1 - ink)(1 - black).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from afinar.pictures.rejects import PictureError, Reason

_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2  # TIFF tags
_BLOCK: Final = (
    1 << 20
)  # samples scaled at a time: float64 of a whole 89-megapixel picture would be 0.7 GB

# A PNG gives its transparent colour at the depth of the file, and Pillow its samples with 8 bits.
_KEY_SCALE: Final = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


def rescale_png_transparency(image: ImageFile.ImageFile) -> None:
    """Bring the transparent colour of a PNG, as yet not loaded, to the depth that its samples will have."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not image.tile:
        return
    scale = _KEY_SCALE.get(str(image.tile[0][3]))
    if scale is not None:
        image.info["transparency"] = (
            tuple(int(part * scale) for part in key) if isinstance(key, tuple) else int(key * scale)
        )


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """RGB of a loaded picture, transparent parts over `background`; the picture itself where it is RGB.

    Raises PictureError for samples that are not finite.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image, background)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    samples = np.asarray(image)
    if image.mode == "I" and _is_unsigned(image):
        samples = samples.view(np.uint32)
    grey = Image.fromarray(_to_eight_bits(samples, _white(image, samples)))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey.convert("RGB")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(grey.convert("RGB"), mask=Image.fromarray(samples != key))
    return canvas


def _white(image: Image.Image, samples: NDArray[Any]) -> float:
    """The sample that is to become 255.

    Floats are taken as 0 to 1, or as 0 to 255 where any is above 1. Counts are taken at the depth the file
    states, but those of 32 bits as 16 where none needs more.
    """
    if image.mode == "F":
        if not np.isfinite(samples).all():
            raise PictureError(Reason.CORRUPT, "samples that are not finite")
        return 1.0 if samples.max(initial=0.0) <= 1.0 else 255.0
    bits, signed = _tiff_depth(image)
    if image.mode == "I" and bits not in {12, 16}:
        if samples.max(initial=0) <= 65535:
            return 65535.0
        return float(np.iinfo(samples.dtype).max)
    return float(2 ** (bits - signed) - 1)


def _tiff_depth(image: Image.Image) -> tuple[int, bool]:
    """Bits per sample, and whether they are signed; 16 and unsigned for what is no TIFF."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16, False
    bits, kind = image.tag_v2.get(_BITS_PER_SAMPLE, (16,)), image.tag_v2.get(_SAMPLE_FORMAT, (1,))
    return int(bits[0]), kind[0] == _SIGNED


def _is_unsigned(image: Image.Image) -> bool:
    return _tiff_depth(image) == (32, False)


def _to_eight_bits(samples: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """Round samples * 255 / white to uint8, below 0 and above 255 clipped."""
    result = np.empty(samples.shape, dtype=np.uint8)
    rows = max(1, _BLOCK // max(1, samples.shape[1]))
    for top in range(0, len(samples), rows):
        scaled = samples[top : top + rows] * np.float64(
            255.0 / white
        )  # float64, that no float32 overflows
        result[top : top + rows] = np.clip(np.rint(scaled), 0, 255)
    return result
