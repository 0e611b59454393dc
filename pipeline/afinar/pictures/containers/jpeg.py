"""JPEG: metadata segments that Pillow stumbles over, and the number of scans."""

from __future__ import annotations

import io
import re
from typing import Final

import numpy as np

from afinar.pictures.containers.parts import MAX_SEGMENTS, BoundedReader, Part, too_complex, without
from afinar.pictures.profiles import MAX_PROFILE_BYTES

_MAX_SCANS: Final = 100  # encoders write 10, jpegtran's longest scripts about 60
_MAX_EXIF_SEGMENTS: Final = 16  # Pillow joins them in quadratic time
_MAX_NEEDLESS: Final = 64  # other metadata segments that are left in place

_START_OF_SCAN, _END_OF_IMAGE, _APP = 0xDA, 0xD9, 0xE0  # from _APP on: metadata
_ENDS_OF_HEADER: Final = {_START_OF_SCAN, _END_OF_IMAGE, 0xFF}
_WITHOUT_LENGTH: Final = {0x01, *range(0xD0, 0xD9)}  # restart markers and the start of the image
_SEQUENTIAL: Final = {0xC0, 0xC1, 0xC9}  # starts of frames that are not progressive
_SCAN: Final = bytes([0xFF, _START_OF_SCAN])
# A marker within entropy-coded data: neither an escaped 0xFF, nor a restart, nor filling.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def open_jpeg(data: bytes) -> io.BytesIO:
    """Drop metadata that Pillow stumbles over, and count the scans.

    Also dropped is the index of a file of several frames (MPO): the first one is the picture.
    """
    metadata = _JpegMetadata()
    components = None  # of the frame; in each scan of a progressive one, of which there are many
    position = 2
    for _ in range(MAX_SEGMENTS):
        if len(data) < position + 10 or data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker in _ENDS_OF_HEADER:
            break
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        stop = position + 2 + (data[position + 2] << 8 | data[position + 3])
        if marker >= _APP:
            metadata.add(marker, data[position + 4 : position + 16], Part(position, stop))
        elif marker in _SEQUENTIAL:
            components = data[position + 9]
        position = stop
    else:
        raise too_complex(f"more than {MAX_SEGMENTS} segments")

    # A decoder reads one scan if that has all components, and every scan of the file otherwise.
    scan = data[position : position + 5]
    is_regular = scan[:2] == _SCAN
    if not is_regular or scan[4] != components:
        _check_scans(data, position)
    reduced = without(data, metadata.dropped())
    # A header that ends otherwise is searched for markers byte by byte.
    return io.BytesIO(reduced) if is_regular else BoundedReader(reduced)


class _JpegMetadata:
    """Metadata segments of a JPEG, and which of them to drop."""

    def __init__(self) -> None:
        self._harmful: list[Part] = []
        self._needless: list[Part] = []
        self._profile_bytes = self._exif_segments = 0

    def add(self, marker: int, start: bytes, segment: Part) -> None:
        """Add a segment whose content begins with the 12 bytes of `start`."""
        size = segment.stop - segment.start - 4
        if marker == 0xE1:
            if start.startswith(b"Exif\0\0"):
                self._exif_segments += 1
                is_harmful = self._exif_segments > _MAX_EXIF_SEGMENTS
            else:
                self._needless.append(segment)
                is_harmful = False
        elif marker == 0xE2 and start == b"ICC_PROFILE\0":
            self._profile_bytes += size
            is_harmful = size < 14 or self._profile_bytes > MAX_PROFILE_BYTES
        elif marker == 0xE0:
            is_harmful = start.startswith(b"JFIF") and size < 14
        elif marker == 0xEE:
            is_harmful = start.startswith(b"Adobe") and size < 12
        else:
            self._needless.append(segment)
            is_harmful = start.startswith((b"MPF\0", b"Photoshop 3."))
        if is_harmful:
            self._harmful.append(segment)

    def dropped(self) -> list[Part]:
        """Return the harmful segments, and all needless ones if there are many."""
        many = self._needless if len(self._needless) > _MAX_NEEDLESS else []
        return sorted({*self._harmful, *many}) if many else self._harmful


def _check_scans(data: bytes, start: int) -> None:
    """Raise PictureError if the frame whose first scan is at `start` has too many scans.

    The first count also sees scans of later frames, and bytes within tables.
    """
    if count_pairs(data, _SCAN, start) <= _MAX_SCANS:
        return
    scans, position = 0, start
    for _ in range(MAX_SEGMENTS):
        found = _NEXT_MARKER.search(data, position)
        if found is None or data[found.start() + 1] == _END_OF_IMAGE:
            return
        marker, position = data[found.start() + 1], found.end()
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > _MAX_SCANS:
                raise too_complex(f"more than {_MAX_SCANS} scans")
        if marker not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
    raise too_complex(f"more than {MAX_SEGMENTS} segments")


def count_pairs(data: bytes, pair: bytes, start: int) -> int:
    """Return how often a pair of unlike bytes occurs from `start` on, faster than `bytes.count`.

    Pairs at even and at odd places are compared as numbers of 16 bits.
    """
    wanted, count = int.from_bytes(pair, "little"), 0
    for first in (start, start + 1):
        length = max(0, len(data) - first) // 2
        numbers = np.frombuffer(data, dtype="<u2", offset=first if length else 0, count=length)
        count += int(np.count_nonzero(numbers == wanted))
    return count
