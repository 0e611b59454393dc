"""ICO: the sizes of the pictures in an icon."""

from __future__ import annotations

import io
import struct
from typing import Final

from afinar.pictures.containers.parts import BoundedReader
from afinar.pictures.containers.png import PNG_MAGIC
from afinar.pictures.rejects import PictureError, Reason

_ICO_ENTRY: Final = struct.Struct("<12xI")  # offset of the picture
_MAX_ICON_PIXELS: Final = 16_000_000  # the largest icons in use have 1 megapixel


def open_icon(data: bytes) -> io.BytesIO:
    """Check the sizes of the pictures in an icon: Pillow decodes one as it opens the file."""
    entries = data[6 : 6 + int.from_bytes(data[4:6], "little") * _ICO_ENTRY.size]
    for (offset,) in _ICO_ENTRY.iter_unpack(entries[: len(entries) - len(entries) % 16]):
        head = data[offset : offset + 24].ljust(24, b"\0")
        is_png = head.startswith(PNG_MAGIC)
        width, height = struct.unpack_from(">II" if is_png else "<Ii", head, 16 if is_png else 4)
        if width * abs(height) > _MAX_ICON_PIXELS:
            detail = f"an icon of {width}x{abs(height)} pixels, limit {_MAX_ICON_PIXELS} in all"
            raise PictureError(Reason.TOO_MANY_PIXELS, detail)
    return BoundedReader(data)
