"""The one way that bytes become an array.

Limits are checked on the header, before pixels are decoded. One picture's failure is a PictureError with a
reason; anything a decoder can raise is caught around that one picture.

Pillow decodes everything, JPEG included: its libjpeg-turbo is as fast as that of simplejpeg (24 against
26 ms for 12 megapixels) and stops at a truncated file. Time went into the resize instead: see `resize`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile, UnidentifiedImageError

from afinar.pictures.colour import rescale_png_transparency, to_rgb
from afinar.pictures.jpeg import decode_stored, encode_stored
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from afinar.pictures.resize import Pixels, write_square

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "Decoded",
    "EncodedPicture",
    "Limits",
    "Pixels",
    "decode",
    "decode_into",
    "decode_to_jpeg",
]

Image.init()  # `formats=` knows only plugins that are loaded, and Pillow loads most of them on demand
# Pillow's remarks on odd files that it reads; limits are ours. Once for the process, because
# `warnings.catch_warnings` around each picture is not safe where threads decode.
warnings.filterwarnings("ignore", module=r"PIL\.")
AvifImagePlugin.DEFAULT_MAX_THREADS = (
    1  # one process per core decodes; a thread per core in each is too many
)

# Pillow registers 43 formats, some of them thin wrappers over Ghostscript or barely tested.
FORMATS: Final = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "AVIF",
    "PPM",
    "ICO",
    "JPEG2000",
    "PCX",
    "DDS",
    "PSD",
    "SGI",
    "TGA",  # the last: it has no magic bytes, and takes icons for its own
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
    max_slow_pixels: int = (
        2_000_000  # for what Pillow decodes in Python, at 1.4 to 2.8 s a megapixel
    )


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Decoded:
    """One picture: `image` uint8 [size, size, 3] RGB; width and height of the original, upright, in pixels."""

    image: Pixels
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """One picture for a shard of `store="jpeg"`: the square as JPEG; width and height as in `Decoded`."""

    jpeg: bytes
    width: int
    height: int


def decode(data: bytes, view: StoredView, limits: Limits = DEFAULT_LIMITS) -> Decoded:
    """Decode one picture into its stored view.

    EXIF orientation is applied; of an animation the first frame is taken; 16-bit and float samples are
    scaled to 8 bits. Raises PictureError, and nothing else, for whatever is wrong with the picture.
    """
    image = np.empty((view.size, view.size, 3), dtype=np.uint8)
    width, height = decode_into(data, view, image, limits)
    return Decoded(image=image, width=width, height=height)


def decode_into(
    data: bytes, view: StoredView, out: Pixels, limits: Limits = DEFAULT_LIMITS
) -> tuple[int, int]:
    """As `decode`, into `out`, uint8 [size, size, 3]; returns the original's upright width and height.

    Raises PictureError; `out` then holds anything.
    """
    width, height = _decode_square(data, view, out, limits)
    if view.store == "jpeg":
        out[...] = decode_stored(encode_stored(out))
    return width, height


def decode_to_jpeg(
    data: bytes, view: StoredView, limits: Limits = DEFAULT_LIMITS
) -> EncodedPicture:
    """As `decode`, to the JPEG whose pixels `decode` gives with `view.store == "jpeg"`."""
    out = np.empty((view.size, view.size, 3), dtype=np.uint8)
    width, height = _decode_square(data, view, out, limits)
    return EncodedPicture(encode_stored(out), width, height)


def _decode_square(data: bytes, view: StoredView, out: Pixels, limits: Limits) -> tuple[int, int]:
    if not data:
        raise PictureError(Reason.EMPTY, "0 bytes")
    if len(data) > limits.max_bytes:
        raise PictureError(Reason.TOO_MANY_BYTES, f"{len(data)} bytes, limit {limits.max_bytes}")
    with _whatever_decoders_raise(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        _check_size(width, height, limits)
        _check_codec(image, limits)
        _check_ending(image, data)
        # Decoding a JPEG at an eighth to a half of its size costs a fraction. A margin of two over the target
        # keeps the mean difference from a full decode at 0.3 to 0.5 of a level of 255; 1.5 lets it pass 1.
        image.draft(None, (2 * view.size, 2 * view.size))
        rescale_png_transparency(image)
        image.load()
        _check_size(
            *image.size, limits
        )  # of an icon, the header tells one size and the picture may have another
        # Only now: Pillow turns a TIFF itself, and a PNG may state its orientation after its pixels.
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
        upright = image if turn is None else image.transpose(turn)
        write_square(to_rgb(upright, view.background), view, out)
    return (height, width) if turn in _SWAPS else (width, height)


_IN_PYTHON: Final = {"bmp_rle", "dds_rgb", "ppm", "ppm_plain"}


def _check_codec(image: ImageFile.ImageFile, limits: Limits) -> None:
    codec = image.tile[0][0] if image.tile else ""
    if codec in _IN_PYTHON and image.width * image.height > limits.max_slow_pixels:
        size = f"{image.width}x{image.height} pixels"
        raise PictureError(
            Reason.TOO_MANY_PIXELS, f"{size}, limit {limits.max_slow_pixels} for the codec {codec}"
        )


def _check_ending(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse a JPEG that has no end marker: a copy broken off and filled with zeros decodes, grey below the break."""
    if (
        image.format == "JPEG"
        and image.fp is not None
        and data.rfind(_END_OF_IMAGE) < image.fp.tell()
    ):
        raise PictureError(Reason.TRUNCATED, "no end marker after the start of the scan")


_END_OF_IMAGE: Final = b"\xff\xd9"  # cannot occur within a scan, but does in a thumbnail before it


@contextmanager
def _whatever_decoders_raise() -> Iterator[None]:
    try:
        yield
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(_reason(error), f"{type(error).__name__}: {error}") from error


_EXIF_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS: Final = {_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8]}


def _check_size(width: int, height: int, limits: Limits) -> None:
    size = f"{width}x{height} pixels"
    if width * height > limits.max_pixels:
        raise PictureError(Reason.TOO_MANY_PIXELS, f"{size}, limit {limits.max_pixels} in all")
    if max(width, height) > limits.max_side:
        raise PictureError(Reason.TOO_LONG_SIDE, f"{size}, limit {limits.max_side} a side")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise PictureError(Reason.TOO_ELONGATED, f"{size}, limit {limits.max_aspect:g} to 1")


def _reason(error: Exception) -> Reason:
    if isinstance(error, UnidentifiedImageError):
        return Reason.UNIDENTIFIED
    if isinstance(error, Image.DecompressionBombError):
        return Reason.TOO_MANY_PIXELS
    words = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in words:
        return (
            Reason.TOO_MUCH_MEMORY
        )  # it may be the machine's fault: a run with more of it may try again
    if "truncated" in words or "end of file" in words or "premature" in words:
        return Reason.TRUNCATED
    return Reason.CORRUPT
