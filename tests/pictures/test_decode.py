"""Decoding: pixels of good pictures, a reason for each bad one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from afinar.config.strict import structure
from afinar.pictures.decode import FORMATS, Limits, decode
from afinar.pictures.preprocessing import InputView, StoredView
from afinar.pictures.rejects import PictureError, Reason
from tests.conftest import jpeg
from tests.pictures.files import noise, photograph, png_claiming, saved, tiff

VIEW = StoredView(size=32, fit="squash")


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
def test_broken_picture_is_rejected_with_its_reason(data: bytes, reason: Reason) -> None:
    with pytest.raises(PictureError) as caught:
        decode(data, VIEW)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_file_over_byte_limit_is_not_decoded() -> None:
    with pytest.raises(PictureError) as caught:
        decode(jpeg(1), VIEW, Limits(max_bytes=100))
    assert caught.value.reason == Reason.TOO_MANY_BYTES


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def with_orientation(upright: Image.Image, orientation: int, kind: str, **options: Any) -> bytes:
    """Return the picture stored rotated or mirrored, with its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(upright.transpose(UNDO[orientation]), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UNDO)
def test_exif_orientation_of_lossless_picture_is_applied(kind: str, orientation: int) -> None:
    upright = photograph(1, 60, 40)
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = decode(with_orientation(upright, orientation, kind, **lossless), VIEW)
    np.testing.assert_array_equal(found.image, decode(saved(upright), VIEW).image)
    assert (found.width, found.height) == (60, 40)


@pytest.mark.parametrize("size", [(160, 96), (1280, 768)])  # decoded whole, and at a reduced scale
@pytest.mark.parametrize("orientation", UNDO)
def test_exif_orientation_of_jpeg_is_applied(size: tuple[int, int], orientation: int) -> None:
    """Flat tiles of whole blocks give equal pixels; a photograph is rounded differently."""
    view, options = StoredView(size=64, fit="crop"), {"quality": 95, "subsampling": 0}
    flat = (
        noise(2, (size[1] // 16, size[0] // 16, 3))
        .astype(np.uint8)
        .repeat(16, axis=0)
        .repeat(16, axis=1)
    )
    for upright, exact in ((Image.fromarray(flat), True), (photograph(2, *size), False)):
        found = decode(with_orientation(upright, orientation, "JPEG", **options), view)
        wanted = decode(saved(upright, "JPEG", **options), view).image
        difference = np.abs(found.image.astype(int) - wanted)
        assert (found.width, found.height) == size
        assert (
            difference.max() == 0 if exact else difference.mean() <= 0.7 and difference.max() <= 5
        )


def test_rotated_tiff_reports_upright_size() -> None:
    rows = noise(3, (40, 60), 65536).astype(np.uint16)
    found = decode(tiff(rows, 1, "<", orientation=6), VIEW)
    assert (found.width, found.height) == (40, 60)
    np.testing.assert_array_equal(
        found.image, decode(tiff(np.rot90(rows, -1).copy(), 1, "<"), VIEW).image
    )


def test_icon_is_decoded_as_icon() -> None:
    found = decode(saved(Image.new("RGB", (64, 64), (1, 2, 3)), "ICO"), VIEW)
    assert (found.width, found.height) == (64, 64)
    assert (found.image == (1, 2, 3)).all()


def test_progressive_jpeg_equals_baseline_jpeg() -> None:
    upright = photograph(4, 640, 480)
    plain, progressive = (
        decode(saved(upright, "JPEG", progressive=flag), VIEW).image for flag in (False, True)
    )
    np.testing.assert_array_equal(plain, progressive)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(160, 96), (1280, 768)])
def test_truncated_jpeg_is_rejected(size: tuple[int, int], progressive: bool) -> None:
    data = saved(photograph(5, *size), "JPEG", quality=90, progressive=progressive)
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(PictureError) as caught:
            decode(data[: int(len(data) * share)], VIEW)
        assert caught.value.reason == Reason.TRUNCATED


def test_jpeg_filled_with_zeros_is_rejected() -> None:
    """An interrupted copy may end in zeros. The thumbnail has an end marker too."""
    exif = Image.Exif()
    exif[0x0112] = 1
    thumbnail = saved(photograph(8, 32, 32), "JPEG")
    data = saved(photograph(9, 160, 96), "JPEG", exif=exif.tobytes() + thumbnail)
    assert decode(data + bytes(100), VIEW).width == 160, "zeros after the end do no harm"
    cut = 2 * len(data) // 3
    with pytest.raises(PictureError) as caught:
        decode(data[:cut] + bytes(len(data) - cut), VIEW)
    assert caught.value.reason == Reason.TRUNCATED


def test_jpeg_with_two_frames_filled_with_zeros_is_rejected() -> None:
    """Cameras append a preview as a second frame; Pillow calls such a file an MPO."""
    preview = photograph(10, 160, 96)
    data = saved(photograph(9, 160, 96), "MPO", save_all=True, append_images=[preview])
    assert decode(data, VIEW).width == 160
    cut = len(data) // 4
    with pytest.raises(PictureError) as caught:
        decode(data[:cut] + bytes(len(data) - cut), VIEW)
    assert caught.value.reason == Reason.TRUNCATED


def test_codec_in_python_has_separate_pixel_limit() -> None:
    rows = noise(6, (40, 60), 4096).astype(">u2").tobytes()
    data = b"P5 60 40 4095\n" + rows
    decode(data, VIEW, Limits(max_slow_pixels=2400))
    with pytest.raises(PictureError) as caught:
        decode(data, VIEW, Limits(max_slow_pixels=2399))
    assert caught.value.reason == Reason.TOO_MANY_PIXELS


def test_jpeg_2000_has_a_limit_of_bytes_of_its_own() -> None:
    """The time of its codec follows the compressed bytes: noise of 16 megapixels takes 6 s."""
    data = saved(photograph(3, 64, 64), "JPEG2000")
    decode(data, VIEW, Limits(max_jpeg2000_bytes=len(data)))
    with pytest.raises(PictureError) as caught:
        decode(data, VIEW, Limits(max_jpeg2000_bytes=len(data) - 1))
    assert caught.value.reason == Reason.TOO_MANY_BYTES


def test_memory_error_is_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("afinar.pictures.decode.to_rgb", fail)
    with pytest.raises(PictureError) as caught:
        decode(jpeg(1), VIEW)
    assert caught.value.reason == Reason.TOO_MUCH_MEMORY


def test_fit_crops_pads_or_squashes() -> None:
    wide = Image.new("RGB", (80, 40), "black")
    wide.paste(Image.new("RGB", (20, 40), "red"), (0, 0))
    crop, pad, squash = (
        decode(saved(wide), StoredView(size=32, fit=fit)).image for fit in ("crop", "pad", "squash")
    )
    assert crop[:, 1:].max() == 0, (
        "the middle 40 px hold no red, but for the edge that bicubic sees across"
    )
    assert (pad[0] == 255).all()
    assert (pad[16, 16] == 0).all()
    assert (squash[16, 2] == [255, 0, 0]).all()


@pytest.mark.parametrize("source", [(500, 375), (1024, 768), (1100, 1300), (4032, 3024)])
def test_reduced_decoding_differs_by_at_most_one_level(source: tuple[int, int]) -> None:
    data = saved(photograph(7, *source), "JPEG", quality=90)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    wanted = np.asarray(ImageOps.fit(whole, (256, 256), Image.Resampling.BICUBIC))
    reduced = decode(data, StoredView(size=256, fit="crop")).image
    assert np.abs(reduced.astype(int) - wanted).mean() <= 1.0


def test_views_round_trip_through_json() -> None:
    assert structure(VIEW.as_dict(), StoredView) == VIEW
    view = InputView(input_size=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert structure(view.as_dict(), InputView) == view
    assert VIEW.key() != StoredView(size=33, fit="squash").key()


def test_pillow_opens_every_listed_format() -> None:
    assert set(FORMATS) <= set(Image.OPEN)
