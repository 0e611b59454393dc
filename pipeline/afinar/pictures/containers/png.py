"""PNG: chunks that no pixel needs."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Final

from afinar.pictures.containers.parts import Part, too_complex, without

_MAX_CHUNKS: Final = 200_000  # 25,000 chunks of the usual 8 KB are 200 MB
_MAX_METADATA_BYTES: Final = 1 << 20  # of a text or profile, decompressed: Pillow's limit
_MAX_INSPECTED: Final = 16  # chunks that are decompressed, at 3 ms each

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_LENGTH_AND_KIND: Final = struct.Struct(">I4s")
_CHUNK_FRAME: Final = 12  # length, kind and checksum
_ANCILLARY: Final = 0x20  # a bit of the first letter
# Texts in which Pillow looks for an orientation.
_ORIENTATION_KEYS: Final = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"exif\0")


def open_png(data: bytes) -> io.BytesIO:
    """Drop ancillary chunks but transparency, and a sound profile, EXIF or orientation in a text.

    Critical chunks and transparency stay as they are: if they are broken, the pixels are. The
    chunks of an animation are dropped: the first frame is the default image.
    """
    dropped, inspected = [], 0
    start = len(PNG_MAGIC)
    for _ in range(_MAX_CHUNKS):
        if start + _LENGTH_AND_KIND.size > len(data):
            break
        length, kind = _LENGTH_AND_KIND.unpack_from(data, start)
        stop = start + _CHUNK_FRAME + length
        if kind == b"IEND":
            break
        if kind[0] & _ANCILLARY and kind.isalpha() and kind != b"tRNS":
            # The last chunk of a file that was cut: the pixels before it may be whole.
            part = Part(start, min(stop, len(data)))
            is_candidate = stop <= len(data) and _is_candidate(kind, data, part)
            inspected += is_candidate
            if not (is_candidate and inspected <= _MAX_INSPECTED and _is_sound(kind, data, part)):
                dropped.append(part)
        start = stop
    else:
        raise too_complex(f"more than {_MAX_CHUNKS} chunks")
    return io.BytesIO(without(data, dropped))


def _is_candidate(kind: bytes, data: bytes, chunk: Part) -> bool:
    """Return True for a chunk of a kind and a size that may change pixels."""
    if kind not in _SOUNDNESS or chunk.stop - chunk.start > _MAX_METADATA_BYTES:
        return False
    return kind not in _TEXTS or data.startswith(_ORIENTATION_KEYS, chunk.start + 8)


def _is_sound(kind: bytes, data: bytes, chunk: Part) -> bool:
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
