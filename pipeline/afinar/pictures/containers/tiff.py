"""TIFF: strips counted, descriptive tags that point beyond the file voided."""

from __future__ import annotations

import io
import struct
from typing import Final, NamedTuple

from afinar.pictures.containers.parts import too_complex

_MAX_STRIPS: Final = 200_000  # 50,000 rows in four planes, one row per strip
_MAX_TAGS: Final = 65_535  # of a directory, as in a TIFF of 32 bits; 70 are usual

_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_TYPE_BYTES: Final = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# Tags that describe a picture: names, dates, resolution. Those above 532 do too.
_DESCRIPTIVE: Final = {269, 270, 271, 272, 282, 283, 285, 286, 287, 305, 306, 315, 316, 318, 319}
_LAST_PIXEL_TAG: Final = 532


class _Layout(NamedTuple):
    """Position of the first directory of a TIFF, and the formats of its numbers."""

    offset_at: int
    offset: str
    entry_count: str
    entry: str  # tag, type, count, offset of the data


_CLASSIC: Final = _Layout(4, "I", "H", "HHII")
_BIG: Final = _Layout(8, "Q", "Q", "HHQQ")


def open_tiff(data: bytes) -> io.BytesIO:
    """Count the strips, and void descriptive tags whose data lie beyond the end of the file.

    At the first such tag Pillow stops reading a directory. A tag of type 0 is ignored.
    """
    order = "<" if data[:2] == b"II" else ">"
    layout = _BIG if data[2:4] in {b"\x2b\0", b"\0\x2b"} else _CLASSIC
    try:
        (offset,) = struct.unpack_from(order + layout.offset, data, layout.offset_at)
        (count,) = struct.unpack_from(order + layout.entry_count, data, offset)
    except struct.error:  # a file that ends before its directory
        return io.BytesIO(data)
    if count > _MAX_TAGS:
        raise too_complex(f"a directory of {count} tags")

    entry = struct.Struct(order + layout.entry)
    start = offset + struct.calcsize(order + layout.entry_count)
    content = data[start : start + count * entry.size]
    content = content[: len(content) - len(content) % entry.size]
    void = []
    for number, (tag, kind, values, location) in enumerate(entry.iter_unpack(content)):
        if tag in {_STRIP_OFFSETS, _TILE_OFFSETS} and values > _MAX_STRIPS:
            raise too_complex(f"{values} strips or tiles")
        size = values * _TYPE_BYTES.get(kind, 1)
        is_beyond = size > struct.calcsize(layout.offset) and location + size > len(data)
        if is_beyond and (tag in _DESCRIPTIVE or tag > _LAST_PIXEL_TAG):
            void.append(start + number * entry.size + 2)
    if not void:
        return io.BytesIO(data)

    changed = bytearray(data)
    for position in void:
        changed[position : position + 2] = bytes(2)
    return io.BytesIO(changed)
