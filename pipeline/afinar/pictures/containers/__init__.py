"""The structure of a picture's file, checked and reduced to what its pixels need.

Pillow parses a file's header and its metadata in Python, and refuses a picture whose pixels are
whole because of one broken comment. A file can also have a million scans, strips or segments of a
few bytes each, which take minutes or gigabytes. So before Pillow sees the bytes

- metadata that no pixel needs is cut out of PNG, JPEG and WebP files where it is broken or large.
  What is needed: the palette, transparency, the colour profile and the orientation;
- parts are counted. A file with more parts than any sound picture has is rejected.

A sound file is passed on without a copy.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

from afinar.pictures.containers.icon import open_icon
from afinar.pictures.containers.jpeg import open_jpeg
from afinar.pictures.containers.parts import BoundedReader
from afinar.pictures.containers.png import PNG_MAGIC, open_png
from afinar.pictures.containers.tiff import open_tiff
from afinar.pictures.containers.webp import open_webp

__all__ = ["BoundedReader", "open_container"]

_FORMATS: Final[dict[bytes, Callable[[bytes], io.BytesIO]]] = {
    b"\xff\xd8": open_jpeg,
    PNG_MAGIC: open_png,
    b"RIFF": open_webp,
    b"\0\0\1\0": open_icon,
    b"II": open_tiff,
    b"MM": open_tiff,
}


def open_container(data: bytes) -> io.BytesIO:
    """Return a picture's bytes as a file for Pillow, without harmful metadata.

    Raises PictureError for a file of too many parts. A file that is not understood here is passed
    on as it is: Pillow finds what is wrong.
    """
    for magic, open_format in _FORMATS.items():
        if data.startswith(magic):
            return open_format(data)
    return BoundedReader(data)
