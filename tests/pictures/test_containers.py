"""Files whose pixels are whole are read; files of too many parts are rejected before decoding."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import binary, integers
from PIL import Image, TiffImagePlugin

from afinar.pictures.containers import open_container
from afinar.pictures.containers.jpeg import count_pairs
from afinar.pictures.decode import Limits, decode
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from tests.pictures.files import chunk, photograph, saved

VIEW = StoredView(size=32, fit="squash")
PHOTO = photograph(1, 32, 24)
PNG, JPEG = saved(PHOTO), saved(PHOTO, "JPEG", quality=95)
GIF = saved(PHOTO.quantize(256), "GIF")
WEBP = saved(PHOTO, "WEBP", lossless=True)
HEADER = 33  # the signature and the chunk IHDR of a PNG
INFLATED = zlib.compress(bytes(3_000_000))
ROTATED = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6


def reason_for(data: bytes) -> Reason:
    with pytest.raises(PictureError) as caught:
        decode(data, VIEW)
    return caught.value.reason


def assert_same_pixels(data: bytes, wanted: bytes) -> None:
    np.testing.assert_array_equal(decode(data, VIEW).image, decode(wanted, VIEW).image)


def inserted(*chunks: bytes) -> bytes:
    return PNG[:HEADER] + b"".join(chunks) + PNG[HEADER:]


KINDS = (
    "iCCP zTXt iTXt tEXt eXIf pHYs gAMA cHRM sRGB sBIT bKGD hIST tIME sPLT cICP acTL fcTL fdAT "
    "teSt prIv"
).split()


@pytest.mark.parametrize("kind", KINDS)
def test_png_with_a_bad_ancillary_chunk_is_read(kind: str) -> None:
    name = kind.encode()
    for content in (b"", b"\0", b"x" * 3, b"name\0\0" + b"q" * 50, b"name\0\0" + INFLATED):
        bad = bytearray(chunk(name, content))
        assert_same_pixels(inserted(bytes(bad)), PNG)
        bad[-1] ^= 1
        assert_same_pixels(inserted(bytes(bad)), PNG)
    assert_same_pixels(PNG[:-12] + chunk(name, b"x")[:-2], PNG)


def test_png_with_many_large_texts_is_read_and_costs_no_memory() -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + INFLATED)
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + INFLATED)
    data = inserted(*[text, xmp] * 500)
    assert_same_pixels(data, PNG)
    with open_container(data) as reduced:
        assert len(reduced.getvalue()) == len(PNG)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS"])
def test_png_with_a_bad_chunk_that_pixels_need_is_rejected(kind: bytes) -> None:
    palette = saved(PHOTO.quantize(16), transparency=3)
    damaged = bytearray(palette)
    damaged[palette.index(kind) + 5] ^= 0x40
    assert reason_for(bytes(damaged)) in {Reason.UNIDENTIFIED, Reason.CORRUPT}


def test_png_keeps_an_orientation_however_it_is_written() -> None:
    raw = b"\nexif\n      34\n" + (b"Exif\0\0" + ROTATED).hex().encode() + b"\n"
    xmp = b'<x:xmpmeta tiff:Orientation="6"/>'
    compressed = zlib.compress(xmp)
    wanted = saved(PHOTO.transpose(Image.Transpose.ROTATE_270))
    for part in (
        chunk(b"eXIf", ROTATED),
        chunk(b"tEXt", b"Raw profile type exif\0" + raw),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + compressed),
    ):
        assert_same_pixels(inserted(part), wanted)


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def with_segments(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


@pytest.mark.parametrize(
    "content",
    [
        segment(0xE0, b"JFIF"),
        segment(0xE1, b"Exif\0\0garbage"),
        segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        segment(0xE1, b"Exif\0\0" + ROTATED[:9]),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\1"),
        segment(0xE2, b"ICC_PROFILE\0\1\2half"),
        segment(0xE2, b"MPF\0junk"),
        segment(0xED, b"Photoshop 3.0\0008BIM\4\4"),
        segment(0xEE, b"Adobe"),
        segment(0xFE, b""),
    ],
)
def test_jpeg_with_a_bad_segment_is_read(content: bytes) -> None:
    assert_same_pixels(with_segments(content), JPEG)


def test_jpeg_with_an_index_of_frames_is_read_as_its_first_frame() -> None:
    data = saved(PHOTO, "MPO", save_all=True, append_images=[photograph(2, 32, 24)], quality=95)
    assert_same_pixels(data, JPEG)


def test_jpeg_with_many_segments_is_read() -> None:
    """1,500 segments of EXIF took Pillow 34 s. The first is the one that counts."""
    exif = segment(0xE1, b"Exif\0\0" + ROTATED)
    data = with_segments(exif, *[segment(0xE1, b"Exif\0\0" + bytes(60_000))] * 1500)
    upright = decode(data, VIEW)
    assert (upright.width, upright.height) == (24, 32)
    with open_container(data) as reduced:
        assert len(reduced.getvalue()) < 2_000_000
    assert_same_pixels(with_segments(*[segment(0xFE, b"a")] * 9_000), JPEG)


@pytest.mark.parametrize("kind", [b"EXIF", b"XMP ", b"ICCP", b"Abcd"])
def test_webp_with_a_bad_chunk_is_read(kind: bytes) -> None:
    flags = b"\x2c\0\0\0" + (31).to_bytes(3, "little") + (23).to_bytes(3, "little")

    def webp(*chunks: bytes, missing: int = 0) -> bytes:
        body = b"WEBP" + _riff(b"VP8X", flags) + b"".join(chunks)
        return b"RIFF" + struct.pack("<I", len(body) + missing) + body

    picture, bad = WEBP[12:], _riff(kind, b"garbage!")
    assert_same_pixels(webp(picture, bad), WEBP)
    assert_same_pixels(webp(bad, picture), WEBP)
    assert_same_pixels(webp(picture, bad[:-4]), WEBP)
    assert_same_pixels(webp(picture, missing=1000), WEBP)


def _riff(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_tiff_with_a_tag_beyond_its_end_is_read(compression: str | None) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270], info[305], info[306] = "a description", "a program", "2026:01:01 00:00:00"
    data = saved(PHOTO, "TIFF", tiffinfo=info, compression=compression)
    for tag in (270, 305, 306):
        entry = data.index(struct.pack("<HH", tag, 2))
        assert_same_pixels(data[: entry + 8] + struct.pack("<I", 10**9) + data[entry + 12 :], PNG)


def progressive(scans: int, start: bytes = b"") -> bytes:
    """Return a progressive grey JPEG whose last scan is repeated."""
    data = saved(photograph(3, 32, 24).convert("L"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:2] + start + data[2:last] + data[last:-2] * scans + data[-2:]


def strips(count: int) -> bytes:
    """Return a TIFF of 8 x 8 pixels that states this many strips, all at the same place."""
    places = struct.pack("<I", 8) * count
    tags = [
        (256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 8),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, 4, count if tag in {273, 279} else 1, value)
        for tag, value in tags
    )
    return (
        b"II*\0" + struct.pack("<I", 8 + len(places)) + places
        + struct.pack("<H", len(tags)) + entries + bytes(4)
    )  # fmt: skip


COMPLEX: dict[str, Callable[[], bytes]] = {
    "scans of a JPEG": lambda: progressive(200),
    "scans of a JPEG after an odd header": lambda: progressive(200, start=b"\0\0"),
    "scans of a JPEG after an end marker in a comment": lambda: progressive(
        200, start=segment(0xFE, b"\xff\xd9")
    ),
    "segments of a JPEG": lambda: with_segments(*[segment(0xFE, b"")] * 20_000),
    "filling of a JPEG": lambda: JPEG[:2] + b"\xff" * 2_000_000 + JPEG[2:],
    "chunks of a PNG": lambda: inserted(chunk(b"teSt", b"") * 300_000),
    "data chunks of a PNG": lambda: PNG[:HEADER] + chunk(b"IDAT", b"") * 300_000 + PNG[HEADER:],
    "chunks of a WebP": lambda: WEBP + _riff(b"Abcd", b"") * 20_000,
    "strips of a TIFF": lambda: strips(300_000),
    "tags of a TIFF": lambda: (
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 100_000) + bytes(20) * 100_000
    ),
    "comment of a Netpbm file": lambda: b"P6\n#" + b"c" * 2_000_000 + b"\n1 1\n255\nabc",
    "comments of a GIF": lambda: GIF[:781] + b"\x21\xfe\x01a\0" * 400_000 + GIF[781:],
    "resources of a PSD": lambda: (
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(4)
        + struct.pack(">I", 12 * 400_000) + b"8BIM\4\4\0\0\0\0\0\0" * 400_000 + bytes(200)
    ),
}  # fmt: skip


@pytest.mark.parametrize("parts", COMPLEX)
def test_file_of_too_many_parts_is_rejected(parts: str) -> None:
    assert reason_for(COMPLEX[parts]()) == Reason.TOO_COMPLEX


@settings(deadline=None)
@given(data=binary(max_size=40), start=integers(0, 45))
def test_pairs_are_counted_as_bytes_count_does(data: bytes, start: int) -> None:
    data = data.replace(b"\0", b"\xff\xda")
    assert count_pairs(data, b"\xff\xda", start) == data.count(b"\xff\xda", start)


def test_sound_files_have_fewer_parts_than_the_limits() -> None:
    assert decode(progressive(60), VIEW).width == 32
    small = PNG.index(b"IDAT") - 4
    idat = PNG[small + 8 : PNG.index(b"IEND") - 8]
    bytewise = b"".join(chunk(b"IDAT", idat[at : at + 1]) for at in range(len(idat)))
    assert_same_pixels(PNG[:small] + bytewise + chunk(b"IEND", b""), PNG)
    assert decode(saved(photograph(4, 64, 3000), "TIFF", strip_size=1), VIEW).height == 3000


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "JPEG"])
def test_picture_that_needs_much_memory_is_rejected(kind: str) -> None:
    mode = "RGB" if kind in {"WEBP", "AVIF", "JPEG2000"} else "CMYK" if "J" in kind else "RGBA"
    options = {"progressive": True} if kind == "JPEG" else {}
    data = saved(Image.new(mode, (300, 200)), kind, **options)
    view = StoredView(size=200, fit="squash")  # the JPEG is not reduced
    decode(data, view, Limits(max_memory_bytes=300 * 200 * 26))
    with pytest.raises(PictureError, match="MB to decode, limit") as caught:
        decode(data, view, Limits(max_memory_bytes=300 * 200 * 6))
    assert caught.value.reason == Reason.TOO_MANY_PIXELS


def test_icon_that_holds_a_large_picture_is_rejected_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = saved(Image.new("1", (5_000, 4_000)))
    head = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", _fail)
    with pytest.raises(PictureError) as caught:
        decode(head + inner, VIEW)
    assert caught.value.reason == Reason.TOO_MANY_PIXELS


def _fail(*_: object) -> None:
    raise AssertionError("decoded")


def test_sound_file_is_not_copied() -> None:
    for data in (PNG, JPEG, WEBP):
        with open_container(data) as container:
            assert isinstance(container, io.BytesIO)
            assert container.getvalue() is data
