"""Conversion to RGB, compared with arithmetic on the samples that were written to the file."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from tests.pictures.files import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, noise, png, saved, tiff

SIDE = 16
GROUND = (200, 100, 50)
# A picture of SIDE x SIDE is not resampled.
VIEW = StoredView(size=SIDE, fit="squash", background=GROUND)


def pixels(data: bytes) -> NDArray[np.int64]:
    return decode(data, VIEW).image.astype(np.int64)


def assert_grey(data: bytes, wanted: NDArray[Any]) -> None:
    """Assert that the picture is grey and within half a level of `wanted`, [SIDE, SIDE]."""
    found = pixels(data)
    assert (found == found[:, :, :1]).all()
    assert np.abs(found[:, :, 0] - wanted).max() <= 0.5 + 1e-6
    assert found.std() > 10, "not one flat tone"


def over(colour: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float64]:
    """Return `colour` [..., 3] composited over GROUND with `alpha` [...] of 0 to 1."""
    share = np.asarray(alpha, dtype=np.float64)[..., None]
    result: NDArray[np.float64] = share * colour + (1 - share) * np.array(GROUND)
    return result


def test_16_bit_png_is_scaled_to_8_bits() -> None:
    rows = noise(1, (SIDE, SIDE), 65536)
    assert_grey(png(rows, 16, GREY), rows / 257)
    colour = noise(2, (SIDE, SIDE, 3), 65536)
    assert np.abs(pixels(png(colour, 16, RGB)) - colour / 257).max() <= 1, (
        "Pillow keeps the high byte"
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_integer_tiff_is_scaled_from_its_depth(order: Literal["<", ">"]) -> None:
    deep = noise(3, (SIDE, SIDE), 65536).astype(np.uint16)
    assert_grey(tiff(deep, 1, order), deep / 257)
    if order == "<":  # Pillow reads these in this byte order only
        twelve = noise(4, (SIDE, SIDE), 4096).astype(np.uint16)
        assert_grey(tiff(twelve, 1, order, bits=12), twelve / 4095 * 255)
        unsigned = noise(5, (SIDE, SIDE), 2**32).astype(np.uint32)
        assert_grey(tiff(unsigned, 1, order), unsigned / (2**32 - 1) * 255)
    signed = noise(6, (SIDE, SIDE), 2**15).astype(np.int16)
    assert_grey(tiff(signed, 2, order), signed / (2**15 - 1) * 255)
    wide = noise(7, (SIDE, SIDE), 2**31).astype(np.int32) - 1000
    assert_grey(tiff(wide, 2, order), np.clip(wide, 0, None) / (2**31 - 1) * 255)
    narrow = noise(8, (SIDE, SIDE), 65536).astype(np.int32)
    assert_grey(tiff(narrow, 2, order), narrow / 257)


@pytest.mark.parametrize("order", ["<", ">"])
def test_float_tiff_has_range_1_or_255(order: Literal["<", ">"]) -> None:
    share = np.random.default_rng(9).uniform(0, 1, (SIDE, SIDE)).astype(np.float32)
    assert_grey(tiff(share, 3, order), share * 255.0)
    assert_grey(tiff(share * np.float32(255), 3, order), share * 255.0)
    share[0, 0] = np.nan
    with pytest.raises(PictureError) as caught:
        decode(tiff(share, 3, order), VIEW)
    assert caught.value.reason == Reason.CORRUPT


@pytest.mark.parametrize(("maxval", "kind"), [(4095, ">u2"), (65535, ">u2"), (100, ">u1")])
def test_netpbm_is_scaled_from_its_stated_maximum(maxval: int, kind: str) -> None:
    rows = noise(10, (SIDE, SIDE), maxval + 1)
    header = f"P5 {SIDE} {SIDE} {maxval}\n".encode()
    assert_grey(header + rows.astype(kind).tobytes(), rows / maxval * 255)


def test_alpha_is_composited_over_background() -> None:
    rgba, grey = noise(11, (SIDE, SIDE, 4)), noise(12, (SIDE, SIDE, 2))
    wanted = over(rgba[:, :, :3], rgba[:, :, 3] / 255)
    assert np.abs(pixels(png(rgba, 8, RGB_ALPHA)) - wanted).max() <= 1
    assert np.abs(pixels(png(rgba * 257, 16, RGB_ALPHA)) - wanted).max() <= 1
    wanted = over(grey[:, :, :1], grey[:, :, 1] / 255)
    assert np.abs(pixels(png(grey, 8, GREY_ALPHA)) - wanted).max() <= 1
    assert np.abs(pixels(png(grey * 257, 16, GREY_ALPHA)) - wanted).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_grey_tone_becomes_background(depth: int) -> None:
    rows = noise(13, (SIDE, SIDE), 2**depth)
    key = int(rows[3, 5])
    tone = np.repeat(rows[:, :, None] / (2**depth - 1) * 255, 3, axis=2)
    found = pixels(png(rows, depth, GREY, tRNS=key.to_bytes(2, "big")))
    assert np.abs(found - over(tone, rows != key)).max() <= 0.5 + 1e-6
    assert (found[3, 5] == GROUND).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_becomes_background(depth: int) -> None:
    rows = noise(14, (SIDE, SIDE, 3), 2**depth)
    rows[4, 4] = rows[8, 8] = rows[2, 9]
    key = rows[2, 9]
    found = pixels(png(rows, depth, RGB, tRNS=key.astype(">u2").tobytes()))
    wanted = over(rows / (2**depth - 1) * 255, (rows != key).any(axis=2))
    assert np.abs(found - wanted).max() <= 1
    assert (found[8, 8] == GROUND).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_is_applied_with_its_alpha(depth: int) -> None:
    rows, colours = noise(15, (SIDE, SIDE), 2**depth), noise(16, (2**depth, 3))
    chunk = colours.astype(np.uint8).tobytes()
    assert (pixels(png(rows, depth, PALETTE, PLTE=chunk)) == colours[rows]).all()
    alpha = noise(17, (2**depth,))
    see_through = png(rows, depth, PALETTE, PLTE=chunk, tRNS=alpha.astype(np.uint8).tobytes())
    assert np.abs(pixels(see_through) - over(colours[rows], alpha[rows] / 255)).max() <= 1


def test_1_bit_picture_is_black_and_white() -> None:
    rows = noise(18, (SIDE, SIDE), 2)
    assert_grey(png(rows, 1, GREY), rows * 255)
    netpbm = f"P4 {SIDE} {SIDE}\n".encode() + np.packbits(rows == 0, axis=1).tobytes()
    assert_grey(netpbm, rows * 255)


INKS = (30, 180, 60, 90)
# Red, green and blue that the inks and black leave.
PRINTED = [(255 - ink) * (255 - INKS[3]) / 255 for ink in INKS[:3]]


def test_cmyk_is_converted_to_rgb() -> None:
    printed = Image.new("CMYK", (SIDE, SIDE), INKS)
    assert np.abs(pixels(saved(printed, "TIFF")) - PRINTED).max() <= 1
    photo = saved(printed, "JPEG", quality=100)  # with Adobe's marker, hence stored inverted
    assert b"Adobe" in photo
    assert np.abs(pixels(photo) - PRINTED).max() <= 3


def test_ycck_is_converted_to_rgb() -> None:
    """Transform 2 in Adobe's marker: luma, chroma and black. Written as CMYK, then changed."""
    cyan, magenta, yellow, black = INKS
    luma = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
    planes = luma, 128 + 0.564 * (yellow - luma), 128 + 0.713 * (cyan - luma), 255 - black
    stored = tuple(255 - round(plane) for plane in planes)  # Pillow inverts once more as it writes
    data = bytearray(saved(Image.new("CMYK", (SIDE, SIDE), stored), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2
    assert np.abs(pixels(bytes(data)) - PRINTED).max() <= 3


def test_grey_jpeg_stays_grey() -> None:
    ramp = np.tile(np.linspace(0, 255, SIDE), (SIDE, 1))
    found = pixels(saved(Image.fromarray(ramp.astype(np.uint8)), "JPEG", quality=100))
    assert (found == found[:, :, :1]).all()
    assert np.abs(found[:, :, 0] - ramp).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "MPO", "TIFF", "AVIF"])
def test_picture_with_several_frames_gives_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("black", "white", "red")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert pixels(data).max() <= 2
