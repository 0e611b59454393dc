"""Decoding of a picture's bytes into its stored view, for ingest, inference and golden samples.

Limits are checked on the header, before pixels are decoded. Every error of a decoder becomes a
PictureError with a reason.

Pillow decodes all formats, JPEG included: its libjpeg-turbo is as fast as simplejpeg's (24 and 26
ms for 12 megapixels) and refuses a truncated file. The slow part was the resize: see `resize`."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import (
    AvifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    UnidentifiedImageError,
)

from afinar.config.formats import ENDINGS
from afinar.pictures.colour import is_opaque_eight_bit, rescale_png_transparency, to_rgb
from afinar.pictures.containers import BoundedReader, open_container
from afinar.pictures.jpeg import decode_stored, encode_stored
from afinar.pictures.memory import estimate_bytes
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.profiles import find_conversion, require_colour_management
from afinar.pictures.rejects import PictureError, Reason
from afinar.pictures.resize import Pixels, write_square
from afinar.pictures.signatures import describe

Image.init()  # load all plugins: `formats=` finds only loaded ones

FORMATS: Final = tuple(ENDINGS)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that are checked before decoding. The defaults admit any camera's pictures.

    They refuse decompression bombs. A 100,000 x 1 picture passes a limit on pixels and then needs
    19.7 GB for a resize by its shorter side: hence the limits on the longer side and the aspect.
    """

    max_bytes: int = 200_000_000
    max_pixels: int = 89_478_485  # above it, Pillow warns
    max_side: int = 50_000
    max_aspect: float = 50.0
    max_slow_pixels: int = 2_000_000  # for codecs in Python, at 1.4 to 2.8 s per megapixel
    max_jpeg2000_bytes: int = 35_000_000  # its codec takes 0.12 s per megabyte
    max_memory_bytes: int = 500_000_000  # by an estimate; 89 megapixels of a JPEG need 10 MB


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded picture: uint8 [size, size, 3] RGB, and the upright original's size in pixels."""

    image: Pixels
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """A picture for a shard of `store="jpeg"`: the square as JPEG; the size as in `Decoded`."""

    jpeg: bytes
    width: int
    height: int


def configure_pillow() -> None:
    """Set Pillow up for a worker process; call at the worker's entry point.

    It silences Pillow's warnings about odd files that it can read; limits are checked here. The
    filter is process-wide, since `warnings.catch_warnings` around each picture is not safe if
    several threads decode. AVIF gets one thread, since one process per core decodes.

    Raises RequestError for a Pillow without LittleCMS.
    """
    require_colour_management()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def decode(data: bytes, view: StoredView, limits: Limits = DEFAULT_LIMITS) -> Decoded:
    """Decode a picture into its stored view.

    EXIF orientation and embedded colour profile are applied. Of an animation the first frame is
    taken. 16-bit and float samples are scaled to 8 bits. Raises PictureError, and no other error,
    for a picture that cannot be used."""
    image = np.empty((view.size, view.size, 3), dtype=np.uint8)
    width, height = decode_into(data, view, image, limits)
    return Decoded(image=image, width=width, height=height)


def decode_into(
    data: bytes, view: StoredView, out: Pixels, limits: Limits = DEFAULT_LIMITS
) -> tuple[int, int]:
    """Decode into `out`, uint8 [size, size, 3]; return the upright original's width and height.

    Raises PictureError as `decode` does; the content of `out` is then undefined.
    """
    width, height = _decode_square(data, view, out, limits)
    if view.store == "jpeg":
        out[...] = decode_stored(encode_stored(out))
    return width, height


def decode_opened(image: Image.Image, view: StoredView) -> Pixels:
    """Convert a picture that Pillow has opened to its stored view, uint8 [size, size, 3].

    The pixels are those of its file, except that a JPEG file is decoded at a reduced scale: the
    mean difference is 0.3 to 0.5 levels. Raises PictureError for a picture that cannot be used.
    """
    out = np.empty((view.size, view.size, 3), dtype=np.uint8)
    with _translate_errors(b""):
        _check_size(image.width, image.height, DEFAULT_LIMITS)
        if isinstance(image, ImageFile.ImageFile):
            rescale_png_transparency(image)
        image.load()
        transposition = _TRANSPOSITIONS.get(_orientation_of(image))
        upright = image if transposition is None else image.transpose(transposition)
        _write_converted(upright, view, out)
    if view.store == "jpeg":
        out[...] = decode_stored(encode_stored(out))
    return out


def decode_to_jpeg(data: bytes, view: StoredView) -> EncodedPicture:
    """Decode into the JPEG whose pixels `decode` returns with `view.store == "jpeg"`."""
    out = np.empty((view.size, view.size, 3), dtype=np.uint8)
    width, height = _decode_square(data, view, out, DEFAULT_LIMITS)
    return EncodedPicture(encode_stored(out), width, height)


_END_OF_IMAGE: Final = b"\xff\xd9"
_SLOW_CODECS: Final = {"bmp_rle", "dds_rgb", "ppm", "ppm_plain"}  # decoded in Python
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")  # of an object, in its repr
_EXIF_ORIENTATION: Final = 0x0112
_TRANSPOSITIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING_SIDES: Final = {_TRANSPOSITIONS[orientation] for orientation in (5, 6, 7, 8)}


def _decode_square(data: bytes, view: StoredView, out: Pixels, limits: Limits) -> tuple[int, int]:
    if not data:
        raise PictureError(Reason.EMPTY, "0 bytes")
    if len(data) > limits.max_bytes:
        raise PictureError(Reason.TOO_MANY_BYTES, f"{len(data)} bytes, limit {limits.max_bytes}")

    with (
        _translate_errors(data),
        open_container(data) as container,
        Image.open(container, formats=FORMATS) as image,
    ):
        if isinstance(container, BoundedReader):
            container.release()
        width, height = image.size
        _check_size(width, height, limits)
        _check_codec(image, len(data), limits)
        _check_ending(image, container)

        # A JPEG can be decoded at 1/8 to 1/2 of its size for a fraction of the time. At twice the
        # target's size the mean difference from a full decode is 0.3 to 0.5 levels of 255; at 1.5
        # times it exceeds 1.
        image.draft(None, (2 * view.size, 2 * view.size))
        _check_memory(image, width, height, limits)
        rescale_png_transparency(image)
        image.load()

        # Only after `load`: Pillow rotates a TIFF itself, and a PNG may state its orientation after
        # its pixels.
        transposition = _TRANSPOSITIONS.get(_orientation_of(image))
        upright = image if transposition is None else image.transpose(transposition)
        _write_converted(upright, view, out)
    return (height, width) if transposition in _SWAPPING_SIDES else (width, height)


def _write_converted(image: Image.Image, view: StoredView, out: Pixels) -> None:
    """Write the square of an upright picture as sRGB.

    The embedded profile is applied to the resized square: that is a tenth of the pixels, and the
    result differs by a level, since both spaces are perceptual. Transparent and deep pictures are
    converted before, since the background is sRGB.
    """
    conversion = find_conversion(image) if view.applies_profiles else None
    if conversion is not None and is_opaque_eight_bit(image):
        source = image if image.mode == conversion.mode else image.convert(conversion.mode)
        write_square(source, view, out, conversion.apply)
    else:
        write_square(to_rgb(image, view.background, conversion), view, out)


def _orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if there is none or the EXIF is broken: the pixels are not."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, EOFError, struct.error):
        return 1


def _check_size(width: int, height: int, limits: Limits) -> None:
    size = f"{width}x{height} pixels"
    if width * height > limits.max_pixels:
        raise PictureError(Reason.TOO_MANY_PIXELS, f"{size}, limit {limits.max_pixels} in all")
    if max(width, height) > limits.max_side:
        raise PictureError(Reason.TOO_LONG_SIDE, f"{size}, limit {limits.max_side} a side")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise PictureError(Reason.TOO_ELONGATED, f"{size}, limit {limits.max_aspect:g} to 1")


def _check_codec(image: ImageFile.ImageFile, size_bytes: int, limits: Limits) -> None:
    codec = image.tile[0][0] if image.tile else ""
    if codec in _SLOW_CODECS and image.width * image.height > limits.max_slow_pixels:
        size = f"{image.width}x{image.height} pixels"
        raise PictureError(
            Reason.TOO_MANY_PIXELS, f"{size}, limit {limits.max_slow_pixels} for the codec {codec}"
        )
    if image.format == "JPEG2000" and size_bytes > limits.max_jpeg2000_bytes:
        raise PictureError(
            Reason.TOO_MANY_BYTES,
            f"{size_bytes} bytes, limit {limits.max_jpeg2000_bytes} for JPEG 2000",
        )


def _check_memory(image: ImageFile.ImageFile, width: int, height: int, limits: Limits) -> None:
    if 32 * width * height <= limits.max_memory_bytes:  # more than the estimate of any format
        return
    needed, limit = estimate_bytes(image, width, height), limits.max_memory_bytes
    if needed > limit:
        raise PictureError(
            Reason.TOO_MANY_PIXELS,
            f"{width}x{height} pixels of this {image.format} take {needed / 1e6:.0f} MB to decode, "
            f"limit {limit / 1e6:.0f} MB",
        )


def _check_ending(image: ImageFile.ImageFile, container: io.BytesIO) -> None:
    """Raise PictureError for a JPEG without an end marker.

    A copy that broke off and was filled with zeros decodes without an error, grey below the break.
    The marker cannot occur within a scan, but a thumbnail before the scan has one too.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.fp is None:
        return
    if container.getvalue().rfind(_END_OF_IMAGE) < image.fp.tell():
        raise PictureError(Reason.TRUNCATED, "no end marker after the start of the scan")


@contextmanager
def _translate_errors(data: bytes) -> Iterator[None]:
    """Raise every error of a decoder as PictureError, with a detail that equal bytes repeat."""
    try:
        yield
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(Reason.UNIDENTIFIED, describe(data)) from error
    except Exception as error:
        message = _ADDRESS.sub("", f"{type(error).__name__}: {error}")
        raise PictureError(_reason_for(error), message) from error


def _reason_for(error: Exception) -> Reason:
    if isinstance(error, Image.DecompressionBombError):
        return Reason.TOO_MANY_PIXELS

    message = str(error).lower()
    # Transient: the machine may be at fault, and one with more memory may succeed.
    if isinstance(error, MemoryError) or "out of memory" in message:
        return Reason.TOO_MUCH_MEMORY
    if "truncated" in message or "end of file" in message or "premature" in message:
        return Reason.TRUNCATED
    return Reason.CORRUPT
