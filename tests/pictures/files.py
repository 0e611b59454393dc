"""Picture files written by hand: what they decode to is known without a decoder."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # PNG colour types


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the picture as Pillow writes it."""
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def png(rows: NDArray[Any], depth: int, colour: int, **chunks: bytes) -> bytes:
    """Return a PNG of `rows`, [height, width(, channels)], with more chunks before its data."""
    height, width = rows.shape[:2]
    if depth == 16:
        lines = rows.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(rows.astype(np.uint8).reshape(height, -1, 1), axis=2)[
            :, :, 8 - depth :
        ]
        lines = np.packbits(bits.reshape(height, -1), axis=1)
    data = b"".join(b"\0" + line.tobytes() for line in lines)
    parts = {"IHDR": struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0), **chunks}
    parts |= {"IDAT": zlib.compress(data), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind.encode(), part) for kind, part in parts.items()
    )


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG with this size in its header and almost no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, RGB, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64)))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    rows: NDArray[Any],
    sample_format: int,
    order: Literal["<", ">"],
    bits: int = 0,
    orientation: int = 1,
) -> bytes:
    """Return an uncompressed grey TIFF of `rows` [height, width].

    `sample_format`: 1 unsigned, 2 signed, 3 float.
    """
    bits = bits or rows.itemsize * 8
    if bits == 12:
        wide = np.unpackbits(rows.astype(">u2")[..., None].view(np.uint8), axis=2)[:, :, 4:]
        data = np.packbits(wide.reshape(len(rows), -1), axis=1).tobytes()
    else:
        data = rows.astype(rows.dtype.newbyteorder(order)).tobytes()
    height, width = rows.shape
    tags = {
        256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 274: orientation, 277: 1,
        278: height, 279: len(data), 339: sample_format,
    }  # fmt: skip
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def noise(seed: int, shape: tuple[int, ...], top: int = 256) -> NDArray[np.int64]:
    """Return random integers from 0 to top - 1."""
    return np.random.default_rng(seed).integers(0, top, shape)


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Return a picture with soft shapes, edges and a little grain, like a photograph."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(
        rng.integers(0, 256, (height // 64 + 2, width // 64 + 2, 3), dtype=np.uint8)
    )
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    y, x = np.mgrid[:height, :width]
    pixels[(x // 97 + y // 61) % 5 == 0] //= 2
    grain = rng.integers(-5, 6, (height, width, 1), dtype=np.int16)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
