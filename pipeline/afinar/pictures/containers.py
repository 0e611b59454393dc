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

from afinar.pictures.profiles import MAX_PROFILE_BYTES
from afinar.pictures.rejects import PictureError, Reason

# Each limit is several times what encoders write, and costs a second at most.
_MAX_SCANS: Final = 100  # encoders write 10, jpegtran's longest scripts about 60
_MAX_SEGMENTS: Final = 10_000  # of a JPEG; 3,100 segments of the full size are 200 MB
_MAX_CHUNKS: Final = 200_000  # of a PNG; 25,000 chunks of the usual 8 KB are 200 MB
_MAX_STRIPS: Final = 200_000  # of a TIFF: 50,000 rows in four planes, one row per strip
_MAX_TAGS: Final = 4_096  # of a TIFF's directory; 70 are usual
_MAX_READS: Final = 500_000  # while a header is read, at 0.3 to 2 microseconds each

_MAX_METADATA_BYTES: Final = 1 << 20  # of a PNG's text or profile, decompressed: Pillow's limit
_MAX_NEEDED: Final = 16  # chunks of a PNG that are looked into
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
_ORIENTATION_KEYS: Final = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"exif")


def _open_png(data: bytes) -> io.BytesIO:
    """Drop ancillary chunks but transparency, and a sound profile, EXIF or orientation in a text.

    Critical chunks and transparency stay as they are: if they are broken, the pixels are. The
    chunks of an animation are dropped: the first frame is the default image.
    """
    dropped, needed = [], 0
    start = len(_PNG_MAGIC)
    for _ in range(_MAX_CHUNKS):
        if start + _CHUNK_FRAME > len(data):
            break
        length, kind = _LENGTH_AND_KIND.unpack_from(data, start)
        stop = start + _CHUNK_FRAME + length
        if kind == b"IEND":
            break
        if kind[0] & _ANCILLARY and kind.isalpha() and kind != b"tRNS":
            # The last chunk of a file that was cut: the pixels before it may be whole.
            part = _Part(start, min(stop, len(data)))
            is_whole = stop <= len(data) and needed < _MAX_NEEDED
            if is_whole and _is_needed(kind, data, part):
                needed += 1
            else:
                dropped.append(part)
        start = stop
    else:
        raise _too_complex(f"more than {_MAX_CHUNKS} chunks")
    return io.BytesIO(_without(data, dropped))


def _is_needed(kind: bytes, data: bytes, chunk: _Part) -> bool:
    """Return True for a chunk that may change pixels, is sound, and is not large."""
    reader = _NEEDED_CHUNKS.get(kind)
    if reader is None or chunk.stop - chunk.start > _MAX_METADATA_BYTES:
        return False
    content = data[chunk.start + 8 : chunk.stop - 4]
    (checksum,) = struct.unpack_from(">I", data, chunk.stop - 4)
    return checksum == zlib.crc32(content, zlib.crc32(kind)) and reader(content)


def _is_sound_profile(content: bytes) -> bool:
    name, _, rest = content.partition(b"\0")
    return 0 < len(name) < 80 and rest[:1] == b"\0" and _inflates(rest[1:])


def _is_orientation(content: bytes) -> bool:
    return content.partition(b"\0")[0] in _ORIENTATION_KEYS


def _is_compressed_orientation(content: bytes) -> bool:
    _, _, rest = content.partition(b"\0")
    return _is_orientation(content) and rest[:1] == b"\0" and _inflates(rest[1:])


def _is_international_orientation(content: bytes) -> bool:
    if not _is_orientation(content):
        return False
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


_NEEDED_CHUNKS: Final[dict[bytes, Callable[[bytes], bool]]] = {
    b"iCCP": _is_sound_profile,
    b"eXIf": bool,
    b"tEXt": _is_orientation,
    b"zTXt": _is_compressed_orientation,
    b"iTXt": _is_international_orientation,
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

    The first count also sees scans of later frames, and bytes within tables. It is fast.
    """
    if data.count(_SCAN, start) <= _MAX_SCANS:
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


# --- WebP -----------------------------------------------------------------------------------------

_WEBP_PIXELS: Final = {b"VP8 ", b"VP8L", b"ANMF"}


def _open_webp(data: bytes) -> io.BytesIO:
    """Cut off what follows the pixels of a WebP file if it runs over the end of the file."""
    start, stop_of_pixels = 12, 0
    for _ in range(_MAX_SEGMENTS):
        if start + 8 > len(data):
            break
        kind, size = struct.unpack_from("<4sI", data, start)
        stop = start + 8 + size + (size & 1)
        if kind in _WEBP_PIXELS:
            stop_of_pixels = stop
        elif stop > len(data) and stop_of_pixels:
            riff_size = struct.pack("<I", stop_of_pixels - 8)
            return io.BytesIO(b"".join([data[:4], riff_size, memoryview(data)[8:stop_of_pixels]]))
        start = stop
    else:
        raise _too_complex(f"more than {_MAX_SEGMENTS} chunks")
    return io.BytesIO(data)


# --- TIFF -----------------------------------------------------------------------------------------

_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_TYPE_BYTES: Final = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def _open_tiff(data: bytes) -> io.BytesIO:
    """Raise PictureError for a directory of too many entries, strips or bytes.

    Entries whose data overlap would be read into as many copies.
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in {b"\x2b\0", b"\0\x2b"}
    at_offset, offset_format, count_format, entry_format = (
        (8, "Q", "Q", "HHQ8x") if is_big else (4, "I", "H", "HHI4x")
    )
    try:
        (offset,) = struct.unpack_from(order + offset_format, data, at_offset)
        (entries,) = struct.unpack_from(order + count_format, data, offset)
        if entries > _MAX_TAGS:
            raise _too_complex(f"a directory of {entries} tags")
        entry = struct.Struct(order + entry_format)
        start = offset + struct.calcsize(order + count_format)
        tags = list(entry.iter_unpack(data[start : start + entries * entry.size]))
    except struct.error:  # no directory, or a part of one
        return io.BytesIO(data)

    # Pillow skips an entry that is larger than the file.
    sizes = [count * _TYPE_BYTES.get(kind, 1) for _, kind, count in tags]
    if sum(size for size in sizes if size <= len(data)) > 2 * len(data):
        raise _too_complex("tags whose data overlap")
    strips = max((n for tag, _, n in tags if tag in {_STRIP_OFFSETS, _TILE_OFFSETS}), default=0)
    if strips > _MAX_STRIPS:
        raise _too_complex(f"{strips} strips or tiles")
    return io.BytesIO(data)


_FORMATS: Final[dict[bytes, Callable[[bytes], io.BytesIO]]] = {
    b"\xff\xd8": _open_jpeg,
    _PNG_MAGIC: _open_png,
    b"RIFF": _open_webp,
    b"II": _open_tiff,
    b"MM": _open_tiff,
}
