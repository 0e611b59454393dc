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
import math
import re
import struct
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from afinar.pictures.profiles import MAX_PROFILE_BYTES
from afinar.pictures.rejects import PictureError, Reason

# Each limit is several times what encoders write, and costs a second at most.
_MAX_SCANS: Final = 100  # encoders write 10, jpegtran's longest scripts about 60
_MAX_SEGMENTS: Final = 10_000  # of a JPEG; 3,100 segments of the full size are 200 MB
_MAX_CHUNKS: Final = 200_000  # of a PNG; 25,000 chunks of the usual 8 KB are 200 MB
_MAX_STRIPS: Final = 200_000  # of a TIFF: 50,000 rows in four planes, one row per strip
_MAX_TAGS: Final = 65_535  # of a TIFF's directory, as in a TIFF of 32 bits; 70 are usual
_MAX_READS: Final = 500_000  # while a header is read, at 0.3 to 2 microseconds each

_MAX_METADATA_BYTES: Final = 1 << 20  # of a PNG's text or profile, decompressed: Pillow's limit
_MAX_INSPECTED: Final = 16  # chunks of a PNG that are decompressed, at 3 ms each
_MAX_EXIF_SEGMENTS: Final = 16  # of a JPEG; Pillow joins them in quadratic time
_MAX_NEEDLESS: Final = 64  # other metadata segments of a JPEG that are left in place


class BoundedReader(io.BytesIO):
    """A file in memory that counts reads until `release`: more than a header needs are an error."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left: float = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise _too_complex(f"a header of more than {_MAX_READS} parts")
        return super().read(size)

    def release(self) -> None:
        """Stop counting: the header has been read. Some codecs read byte by byte."""
        self._reads_left = math.inf


def open_container(data: bytes) -> io.BytesIO:
    """Return a picture's bytes as a file for Pillow, without harmful metadata.

    Raises PictureError for a file of too many parts. A file that is not understood here is passed
    on as it is: Pillow finds what is wrong.
    """
    for magic, open_format in _FORMATS.items():
        if data.startswith(magic):
            return open_format(data)
    return BoundedReader(data)


class _Part(NamedTuple):
    """A part of a file: data[start:stop]."""

    start: int
    stop: int


def _without(data: bytes, dropped: list[_Part]) -> bytes:
    """Return the data without some parts, which are in order; the data itself if there is none."""
    if not dropped:
        return data
    view, kept, start = memoryview(data), [], 0
    for part in dropped:
        kept.append(view[start : part.start])
        start = part.stop
    return b"".join([*kept, view[start:]])


def _too_complex(what: str) -> PictureError:
    return PictureError(Reason.TOO_COMPLEX, f"{what}: no sound picture needs as many")


# --- PNG ------------------------------------------------------------------------------------------

_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_LENGTH_AND_KIND: Final = struct.Struct(">I4s")
_CHUNK_FRAME: Final = 12  # length, kind and checksum
_ANCILLARY: Final = 0x20  # a bit of the first letter
# Texts in which Pillow looks for an orientation.
_ORIENTATION_KEYS: Final = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"exif\0")


def _open_png(data: bytes) -> io.BytesIO:
    """Drop ancillary chunks but transparency, and a sound profile, EXIF or orientation in a text.

    Critical chunks and transparency stay as they are: if they are broken, the pixels are. The
    chunks of an animation are dropped: the first frame is the default image.
    """
    dropped, inspected = [], 0
    start = len(_PNG_MAGIC)
    for _ in range(_MAX_CHUNKS):
        if start + _LENGTH_AND_KIND.size > len(data):
            break
        length, kind = _LENGTH_AND_KIND.unpack_from(data, start)
        stop = start + _CHUNK_FRAME + length
        if kind == b"IEND":
            break
        if kind[0] & _ANCILLARY and kind.isalpha() and kind != b"tRNS":
            # The last chunk of a file that was cut: the pixels before it may be whole.
            part = _Part(start, min(stop, len(data)))
            is_candidate = stop <= len(data) and _is_candidate(kind, data, part)
            inspected += is_candidate
            if not (is_candidate and inspected <= _MAX_INSPECTED and _is_sound(kind, data, part)):
                dropped.append(part)
        start = stop
    else:
        raise _too_complex(f"more than {_MAX_CHUNKS} chunks")
    return io.BytesIO(_without(data, dropped))


def _is_candidate(kind: bytes, data: bytes, chunk: _Part) -> bool:
    """Return True for a chunk of a kind and a size that may change pixels."""
    if kind not in _SOUNDNESS or chunk.stop - chunk.start > _MAX_METADATA_BYTES:
        return False
    return kind not in _TEXTS or data.startswith(_ORIENTATION_KEYS, chunk.start + 8)


def _is_sound(kind: bytes, data: bytes, chunk: _Part) -> bool:
    content = data[chunk.start + 8 : chunk.stop - 4]
    (checksum,) = struct.unpack_from(">I", data, chunk.stop - 4)
    return checksum == zlib.crc32(content, zlib.crc32(kind)) and _SOUNDNESS[kind](content)


def _is_sound_profile(content: bytes) -> bool:
    name, _, rest = content.partition(b"\0")
    return 0 < len(name) < 80 and rest[:1] == b"\0" and _inflates(rest[1:])


def _is_sound_compressed_text(content: bytes) -> bool:
    _, _, rest = content.partition(b"\0")
    return rest[:1] == b"\0" and _inflates(rest[1:])


def _is_sound_international_text(content: bytes) -> bool:
    _, _, rest = content.partition(b"\0")
    texts = rest[2:].split(b"\0", 2)  # language, translated key, text
    return rest[:1] == b"\0" or (len(texts) == 3 and _inflates(texts[2]))


def _inflates(compressed: bytes) -> bool:
    """Return True if zlib data is sound and does not expand beyond the limit."""
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(compressed, _MAX_METADATA_BYTES)
    except zlib.error:
        return False
    return inflater.eof or not inflater.unconsumed_tail


_TEXTS: Final = {b"tEXt", b"zTXt", b"iTXt"}
_SOUNDNESS: Final[dict[bytes, Callable[[bytes], bool]]] = {
    b"iCCP": _is_sound_profile,
    b"eXIf": bool,
    b"tEXt": bool,
    b"zTXt": _is_sound_compressed_text,
    b"iTXt": _is_sound_international_text,
}

# --- JPEG -----------------------------------------------------------------------------------------

_START_OF_SCAN, _END_OF_IMAGE, _APP = 0xDA, 0xD9, 0xE0  # from _APP on: metadata
_ENDS_OF_HEADER: Final = {_START_OF_SCAN, _END_OF_IMAGE, 0xFF}
_WITHOUT_LENGTH: Final = {0x01, *range(0xD0, 0xD9)}  # restart markers and the start of the image
_SEQUENTIAL: Final = {0xC0, 0xC1, 0xC9}  # starts of frames that are not progressive
_SCAN: Final = bytes([0xFF, _START_OF_SCAN])
# A marker within entropy-coded data: neither an escaped 0xFF, nor a restart, nor filling.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _open_jpeg(data: bytes) -> io.BytesIO:
    """Drop metadata that Pillow stumbles over, and count the scans.

    Also dropped is the index of a file of several frames (MPO): the first one is the picture.
    """
    metadata = _JpegMetadata()
    components = None  # of the frame; in each scan of a progressive one, of which there are many
    position = 2
    for _ in range(_MAX_SEGMENTS):
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
            metadata.add(marker, data[position + 4 : position + 16], _Part(position, stop))
        elif marker in _SEQUENTIAL:
            components = data[position + 9]
        position = stop
    else:
        raise _too_complex(f"more than {_MAX_SEGMENTS} segments")

    # A decoder reads one scan if that has all components, and every scan of the file otherwise.
    scan = data[position : position + 5]
    is_regular = scan[:2] == _SCAN
    if not is_regular or scan[4] != components:
        _check_scans(data, position)
    reduced = _without(data, metadata.dropped())
    # A header that ends otherwise is searched for markers byte by byte.
    return io.BytesIO(reduced) if is_regular else BoundedReader(reduced)


class _JpegMetadata:
    """Metadata segments of a JPEG, and which of them to drop."""

    def __init__(self) -> None:
        self._harmful: list[_Part] = []
        self._needless: list[_Part] = []
        self._profile_bytes = self._exif_segments = 0

    def add(self, marker: int, start: bytes, segment: _Part) -> None:
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

    def dropped(self) -> list[_Part]:
        """Return the harmful segments, and all needless ones if there are many."""
        many = self._needless if len(self._needless) > _MAX_NEEDLESS else []
        return sorted({*self._harmful, *many}) if many else self._harmful


def _check_scans(data: bytes, start: int) -> None:
    """Raise PictureError if the frame whose first scan is at `start` has too many scans.

    The first count also sees scans of later frames, and bytes within tables.
    """
    if _count_pairs(data, _SCAN, start) <= _MAX_SCANS:
        return
    scans, position = 0, start
    for _ in range(_MAX_SEGMENTS):
        found = _NEXT_MARKER.search(data, position)
        if found is None or data[found.start() + 1] == _END_OF_IMAGE:
            return
        marker, position = data[found.start() + 1], found.end()
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > _MAX_SCANS:
                raise _too_complex(f"more than {_MAX_SCANS} scans")
        if marker not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
    raise _too_complex(f"more than {_MAX_SEGMENTS} segments")


def _count_pairs(data: bytes, pair: bytes, start: int) -> int:
    """Return how often a pair of unlike bytes occurs from `start` on, faster than `bytes.count`.

    Pairs at even and at odd places are compared as numbers of 16 bits.
    """
    wanted, count = int.from_bytes(pair, "little"), 0
    for first in (start, start + 1):
        length = max(0, len(data) - first) // 2
        numbers = np.frombuffer(data, dtype="<u2", offset=first if length else 0, count=length)
        count += int(np.count_nonzero(numbers == wanted))
    return count


# --- WebP -----------------------------------------------------------------------------------------

_WEBP_PIXELS: Final = {b"VP8 ", b"VP8L", b"ANMF"}


def _open_webp(data: bytes) -> io.BytesIO:
    """Cut off what follows the pixels of a WebP file if it runs over the end of the file."""
    start, stop_of_pixels = 12, 0
    (stated,) = struct.unpack_from("<I", data.ljust(8, b"\0"), 4)
    for _ in range(_MAX_SEGMENTS):
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
        raise _too_complex(f"more than {_MAX_SEGMENTS} chunks")

    if stop_of_pixels and max(start, stated + 8) > len(data):
        riff_size = struct.pack("<I", stop_of_pixels - 8)
        return io.BytesIO(b"".join([data[:4], riff_size, memoryview(data)[8:stop_of_pixels]]))
    return io.BytesIO(data)


# --- TIFF -----------------------------------------------------------------------------------------

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


def _open_tiff(data: bytes) -> io.BytesIO:
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
        raise _too_complex(f"a directory of {count} tags")

    entry = struct.Struct(order + layout.entry)
    start = offset + struct.calcsize(order + layout.entry_count)
    content = data[start : start + count * entry.size]
    content = content[: len(content) - len(content) % entry.size]
    void = []
    for number, (tag, kind, values, location) in enumerate(entry.iter_unpack(content)):
        if tag in {_STRIP_OFFSETS, _TILE_OFFSETS} and values > _MAX_STRIPS:
            raise _too_complex(f"{values} strips or tiles")
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


# --- ICO ------------------------------------------------------------------------------------------

_ICO_ENTRY: Final = struct.Struct("<12xI")  # offset of the picture
_MAX_ICON_PIXELS: Final = 16_000_000  # the largest icons in use have 1 megapixel


def _open_icon(data: bytes) -> io.BytesIO:
    """Check the sizes of the pictures in an icon: Pillow decodes one as it opens the file."""
    entries = data[6 : 6 + int.from_bytes(data[4:6], "little") * _ICO_ENTRY.size]
    for (offset,) in _ICO_ENTRY.iter_unpack(entries[: len(entries) - len(entries) % 16]):
        head = data[offset : offset + 24].ljust(24, b"\0")
        is_png = head.startswith(_PNG_MAGIC)
        width, height = struct.unpack_from(">II" if is_png else "<Ii", head, 16 if is_png else 4)
        if width * abs(height) > _MAX_ICON_PIXELS:
            detail = f"an icon of {width}x{abs(height)} pixels, limit {_MAX_ICON_PIXELS} in all"
            raise PictureError(Reason.TOO_MANY_PIXELS, detail)
    return BoundedReader(data)


_FORMATS: Final[dict[bytes, Callable[[bytes], io.BytesIO]]] = {
    b"\xff\xd8": _open_jpeg,
    _PNG_MAGIC: _open_png,
    b"RIFF": _open_webp,
    b"\0\0\1\0": _open_icon,
    b"II": _open_tiff,
    b"MM": _open_tiff,
}
