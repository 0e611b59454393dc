"""One way from bytes to pixels, and a reason for everything that has no way."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PictureError, Reason
from pipeline.pictures.contract import InputView, StoredView
from pipeline.pictures.decode import FORMATS, Limits, decode
from tests.conftest import jpeg

VIEW = StoredView(size=32, fit="squash")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with almost no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"a note somebody called .jpg\n", Reason.UNIDENTIFIED),
        (jpeg(1)[:900], Reason.TRUNCATED),
        (png_claiming(60_000, 60_000), Reason.TOO_MANY_PIXELS),
        (png_claiming(9_500, 9_500), Reason.TOO_MANY_PIXELS),
        (png_claiming(100_000, 1), Reason.TOO_LONG_SIDE),
        (png_claiming(2_000, 1), Reason.TOO_ELONGATED),
    ],
)
def test_each_kind_of_broken_picture_has_its_reason(data: bytes, reason: Reason) -> None:
    with pytest.raises(PictureError) as caught:
        decode(data, VIEW)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_a_file_over_the_limit_is_not_decoded() -> None:
    with pytest.raises(PictureError) as caught:
        decode(jpeg(1), VIEW, Limits(max_bytes=100))
    assert caught.value.reason == Reason.TOO_MANY_BYTES


def test_the_eight_orientations_of_a_picture_are_one_picture() -> None:
    rng = np.random.default_rng(0)
    upright = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    wanted = decode(encoded(upright), VIEW)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation, operation in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = decode(encoded(upright.transpose(operation), exif=exif), VIEW)
        np.testing.assert_array_equal(turned.image, wanted.image, f"orientation {orientation}")
        assert (turned.width, turned.height) == (60, 40)


def flat(image: Image.Image, kind: str = "PNG") -> list[int]:
    """The one colour of a picture that has one."""
    pixels = decode(encoded(image, kind), VIEW).image.reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    return [int(value) for value in pixels[0]]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    assert flat(Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16))) == [156] * 3  # 40000 / 257


def test_floats_from_zero_to_one_are_scaled() -> None:
    assert flat(Image.fromarray(np.full((9, 9), 0.5, dtype=np.float32)), "TIFF") == [128] * 3


def test_hidden_colours_of_transparent_pixels_do_not_show() -> None:
    assert flat(Image.new("RGBA", (9, 9), (255, 0, 0, 0))) == [255] * 3
    assert flat(Image.new("LA", (9, 9), (0, 0))) == [255] * 3


def test_cmyk_and_palettes_become_rgb() -> None:
    assert flat(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "TIFF") == [255, 0, 0]
    assert flat(Image.new("RGB", (9, 9), (0, 0, 255)).convert("P")) == [0, 0, 255]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("black", "white")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert int(decode(data, VIEW).image.max()) == 0


def test_fits() -> None:
    wide = Image.new("RGB", (80, 40), "black")
    wide.paste(Image.new("RGB", (20, 40), "red"), (0, 0))
    crop, pad, squash = (decode(encoded(wide), StoredView(size=32, fit=fit)).image for fit in ("crop", "pad", "squash"))
    assert crop[:, 1:].max() == 0, "the middle 40 px hold no red, but for the edge that bicubic sees across"
    assert (pad[0] == 255).all()
    assert (pad[16, 16] == 0).all()
    assert (squash[16, 2] == [255, 0, 0]).all()


def test_reduced_decoding_of_a_photograph_stays_within_a_level() -> None:
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    large = small.resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
    reduced = decode(data, StoredView(size=64, fit="squash")).image
    assert np.abs(reduced.astype(int) - whole).mean() <= 1.0


def test_views_survive_json() -> None:
    assert StoredView.from_dict(VIEW.as_dict()) == VIEW
    view = InputView(input_size=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert InputView.from_dict(view.as_dict()) == view
    assert VIEW.key() != StoredView(size=33, fit="squash").key()


def test_every_format_named_is_one_that_pillow_opens() -> None:
    assert set(FORMATS) <= set(Image.OPEN)
