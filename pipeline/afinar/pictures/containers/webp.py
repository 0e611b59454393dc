"""WebP: chunks after the pixels."""

from __future__ import annotations

import io
import struct
from typing import Final

from afinar.pictures.containers.parts import MAX_SEGMENTS, too_complex

_WEBP_PIXELS: Final = {b"VP8 ", b"VP8L", b"ANMF"}


def open_webp(data: bytes) -> io.BytesIO:
    """Cut off what follows the pixels of a WebP file if it runs over the end of the file."""
    start, stop_of_pixels = 12, 0
    (stated,) = struct.unpack_from("<I", data.ljust(8, b"\0"), 4)
    for _ in range(MAX_SEGMENTS):
        if start + 8 > len(data):
            break
        kind, size = struct.unpack_from("<4sI", data, start)
        stop = start + 8 + size + (size & 1)
        if kind in _WEBP_PIXELS:
            if stop > len(data):
                break
            stop_of_pixels = stop
        start = stop
    else:
        raise too_complex(f"more than {MAX_SEGMENTS} chunks")

    if stop_of_pixels and max(start, stated + 8) > len(data):
        riff_size = struct.pack("<I", stop_of_pixels - 8)
        return io.BytesIO(b"".join([data[:4], riff_size, memoryview(data)[8:stop_of_pixels]]))
    return io.BytesIO(data)
