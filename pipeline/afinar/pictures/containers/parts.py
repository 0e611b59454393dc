"""Parts of a file: how many it may have, and the file without some of them."""

from __future__ import annotations

import io
import math
from typing import Final, NamedTuple

from afinar.pictures.rejects import PictureError, Reason

# The limits here and in the formats' modules are several times what encoders write; what they let
# pass costs a second at most.
_MAX_READS: Final = 500_000  # while a header is read, at 0.3 to 2 microseconds each
MAX_SEGMENTS: Final = 10_000  # of a JPEG or WebP; 3,100 segments of the full size are 200 MB


class BoundedReader(io.BytesIO):
    """A file in memory that counts reads until `release`: more than a header needs are an error."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left: float = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise too_complex(f"a header of more than {_MAX_READS} parts")
        return super().read(size)

    def release(self) -> None:
        """Stop counting: the header has been read. Some codecs read byte by byte."""
        self._reads_left = math.inf


class Part(NamedTuple):
    """A part of a file: data[start:stop]."""

    start: int
    stop: int


def without(data: bytes, dropped: list[Part]) -> bytes:
    """Return the data without some parts, which are in order; the data itself if there is none."""
    if not dropped:
        return data
    view, kept, start = memoryview(data), [], 0
    for part in dropped:
        kept.append(view[start : part.start])
        start = part.stop
    return b"".join([*kept, view[start:]])


def too_complex(what: str) -> PictureError:
    """Return the error for a file that has `what`."""
    return PictureError(Reason.TOO_COMPLEX, f"{what}: no sound picture needs as many")
