"""The one way that bytes become an array.

Limits are checked on the header, before pixels are decoded. One picture's failure is a PictureError with a
reason; anything a decoder can raise is caught around that one picture.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import PictureError, Reason
from pipeline.pictures.contract import StoredView

Pixels = NDArray[np.uint8]

Image.init()  # `formats=` knows only plugins that are loaded, and Pillow loads most of them on demand
# Pillow registers 43 formats, some of them thin wrappers over Ghostscript or barely tested.
FORMATS: Final = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "PPM",
    "TGA",
    "ICO",
    "JPEG2000",
    "PCX",
    "DDS",
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused before decoding. The defaults admit any camera and refuse decompression bombs.

    A 100,000 x 1 picture passes a limit on pixels and then needs 19.7 GB to resize by its shorter side:
    hence limits on the side and on the ratio of the sides.
    """

    max_bytes: int = 200_000_000
    max_pixels: int = 89_478_485  # where Pillow itself starts to warn
    max_side: int = 50_000
    max_aspect: float = 50.0


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Decoded:
    """One picture: `image` uint8 [size, size, 3] RGB; width and height of the original, upright, in pixels."""

    image: Pixels
    width: int
    height: int


def decode(data: bytes, view: StoredView, limits: Limits = DEFAULT_LIMITS) -> Decoded:
    """Decode one picture into its stored view.

    EXIF orientation is applied; of an animation the first frame is taken; 16-bit and float samples are
    scaled to 8 bits. Raises PictureError, and nothing else, for whatever is wrong with the picture.
    """
    if not data:
        raise PictureError(Reason.EMPTY, "0 bytes")
    if len(data) > limits.max_bytes:
        raise PictureError(Reason.TOO_MANY_BYTES, f"{len(data)} bytes, limit {limits.max_bytes}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files that it reads; limits are ours
        try:
            return _decode(data, view, limits)
        except PictureError:
            raise
        except Exception as error:
            raise PictureError(_reason(error), f"{type(error).__name__}: {error}") from error


def _decode(data: bytes, view: StoredView, limits: Limits) -> Decoded:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        _check_size(width, height, limits)
        if image.getexif().get(_EXIF_ORIENTATION, 1) in _TRANSPOSED:
            width, height = height, width
        # Decoding a JPEG at an eighth to a half of its size costs a fraction; a margin of two over the
        # target keeps the difference from a full decode under a level of 255.
        image.draft("RGB", (2 * view.size, 2 * view.size))
        upright = ImageOps.exif_transpose(image)
        rgb = _to_rgb(upright, view.background)
        return Decoded(image=_to_square(rgb, view), width=width, height=height)


_EXIF_ORIENTATION: Final = 0x0112
_TRANSPOSED: Final = {5, 6, 7, 8}


def _check_size(width: int, height: int, limits: Limits) -> None:
    size = f"{width}x{height} pixels"
    if width * height > limits.max_pixels:
        raise PictureError(Reason.TOO_MANY_PIXELS, f"{size}, limit {limits.max_pixels} in all")
    if max(width, height) > limits.max_side:
        raise PictureError(Reason.TOO_LONG_SIDE, f"{size}, limit {limits.max_side} a side")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise PictureError(Reason.TOO_ELONGATED, f"{size}, limit {limits.max_aspect:g} to 1")


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Pixels:
    """16-bit counts become v / 257; floats are taken as 0 to 1, or as 0 to 255 where any is above 1."""
    samples = np.asarray(image, dtype=np.float64)
    if not np.isfinite(samples).all():
        raise PictureError(Reason.CORRUPT, "samples that are not finite")
    scale = 255.0 / 65535.0
    if image.mode == "F":
        scale = 255.0 if samples.max(initial=0.0) <= 1.0 else 1.0
    return np.clip(np.rint(samples * scale), 0, 255).astype(np.uint8)


def _to_square(image: Image.Image, view: StoredView) -> Pixels:
    size = (view.size, view.size)
    method = Image.Resampling.BICUBIC
    if view.fit == "crop":
        square = ImageOps.fit(image, size, method)
    elif view.fit == "pad":
        square = ImageOps.pad(image, size, method, color=view.background)
    else:
        square = image.resize(size, method)
    return np.asarray(square)


def _reason(error: Exception) -> Reason:
    if isinstance(error, UnidentifiedImageError):
        return Reason.UNIDENTIFIED
    if isinstance(error, Image.DecompressionBombError):
        return Reason.TOO_MANY_PIXELS
    words = str(error).lower()
    if "truncated" in words or "end of file" in words or "premature" in words:
        return Reason.TRUNCATED
    return Reason.CORRUPT


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """One picture of a `jpeg` store."""

    jpeg: bytes
    width: int
    height: int


def decode_into(data: bytes, view: StoredView, out: Pixels, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
    """As decode."""
    decoded = decode(data, view, limits)
    out[:] = decoded.image
    return decoded.width, decoded.height


def encode_stored(image: Pixels) -> bytes:
    """JPEG."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def decode_stored(data: bytes | memoryview) -> Pixels:
    """Inverse."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decode_to_jpeg(data: bytes, view: StoredView, limits: Limits = DEFAULT_LIMITS) -> EncodedPicture:
    """As decode."""
    decoded = decode(data, view, limits)
    return EncodedPicture(encode_stored(decoded.image), decoded.width, decoded.height)
