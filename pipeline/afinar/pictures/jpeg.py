"""The stored square as a JPEG: what shards contain with `store = "jpeg"`."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image

from afinar.pictures.resize import Pixels

_QUALITY: Final = 95
# 4:4:4. At 256 px of a photograph: 40 kB and a mean error of 1.6 levels of 255; 31 kB and 2.5 with
# 4:2:0 (196 kB as pixels). It also avoids the upsampling of colour, in which decoders differ.
_SUBSAMPLING: Final = 0


def encode_stored(image: Pixels) -> bytes:
    """Encode a square, uint8 [size, size, 3], as JPEG."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="JPEG", quality=_QUALITY, subsampling=_SUBSAMPLING)
    return sink.getvalue()


def decode_stored(data: bytes | memoryview) -> Pixels:
    """Decode a JPEG of `encode_stored`: uint8 [size, size, 3], which may be read-only.

    Raises Pillow's errors for other bytes. Shards are verified by their hash before, so such an
    error is a bug or a broken machine, not a bad picture.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return np.asarray(image)
