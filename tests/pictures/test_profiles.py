"""Embedded colour profiles, compared with LittleCMS and with arithmetic in float64."""

from __future__ import annotations

import io
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from afinar.config.strict import MismatchError, structure
from afinar.errors import RequestError
from afinar.pictures.decode import configure_pillow, decode, decode_to_jpeg
from afinar.pictures.jpeg import decode_stored
from afinar.pictures.preprocessing import DECODER, StoredView
from afinar.pictures.profiles import MAX_PROFILE_BYTES, find_conversion
from tests.pictures.files import noise, photograph, png, saved
from tests.pictures.icc import SPACES, SRGB, cmyk_profile, grey_profile, rgb_profile, to_srgb

SIDE = 64
GROUND = (200, 100, 50)
# A picture of SIDE x SIDE is not resampled.
VIEW = StoredView(size=SIDE, fit="squash", background=GROUND)
EARLIER = replace(VIEW, decoder="pillow/2")
P3 = rgb_profile(SPACES["Display P3"])
LOSSLESS: dict[str, Any] = {"lossless": True, "exact": True}


def pixels(data: bytes, view: StoredView = VIEW) -> NDArray[np.int64]:
    return decode(data, view).image.astype(np.int64)


def littlecms(image: Image.Image, profile: bytes) -> Image.Image:
    """Return the whole picture as LittleCMS converts it."""
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert converted is not None
    return converted


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
@pytest.mark.parametrize("name", SPACES)
def test_profile_is_converted_to_srgb(name: str, kind: str) -> None:
    profile = rgb_profile(SPACES[name])
    colours = Image.fromarray(noise(1, (SIDE // 8, SIDE // 8, 3)).astype(np.uint8))
    data = saved(
        colours.resize((SIDE, SIDE), Image.Resampling.NEAREST),
        kind,
        icc_profile=profile,
        **(LOSSLESS if kind == "WEBP" else {}),
    )
    with Image.open(io.BytesIO(data)) as whole:
        source = whole.convert("RGB")
    found = pixels(data)
    assert np.abs(found - np.asarray(littlecms(source, profile)).astype(int)).max() <= 2
    assert np.abs(found - to_srgb(np.asarray(source), SPACES[name])).max() <= 2
    assert np.abs(found - np.asarray(source)).max() > 20, "the profile matters"
    assert np.abs(pixels(data, EARLIER) - np.asarray(source)).max() <= 1


@pytest.mark.parametrize("name", SPACES)
def test_resize_before_conversion_differs_little_from_conversion_before(name: str) -> None:
    """The colours are those of a photograph: ones that sRGB lacks are clipped, before or after."""
    profile = rgb_profile(SPACES[name])
    encoded = ImageCms.profileToProfile(
        photograph(2, 400, 300),
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
    )
    assert encoded is not None
    view = StoredView(size=96, fit="crop")
    ours = decode(saved(encoded, icc_profile=profile), view).image.astype(int)
    wanted = decode(saved(littlecms(encoded, profile)), view).image
    assert np.abs(ours - wanted).mean() <= 1
    assert np.percentile(np.abs(ours - wanted), 99) <= 3


@pytest.mark.parametrize(
    "profile",
    [rgb_profile(SRGB), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
)
def test_srgb_profile_has_no_conversion(profile: bytes) -> None:
    image = photograph(3, SIDE, SIDE)
    image.info["icc_profile"] = profile
    assert find_conversion(image) is None
    assert (pixels(saved(image, icc_profile=profile)) == np.asarray(image)).all()


def test_conversion_is_built_once_for_equal_profiles() -> None:
    first, second = photograph(4, 8, 8), photograph(5, 8, 8)
    first.info["icc_profile"], second.info["icc_profile"] = P3, bytes(bytearray(P3))
    assert find_conversion(first) is find_conversion(second)


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        P3[:200],
        P3[:132] + bytes(len(P3) - 132),
        P3[:16] + b"CMYK" + P3[20:],
        P3[:16] + b"Luv " + P3[20:],
        cmyk_profile(),
        grey_profile(1.8),
        P3.ljust(MAX_PROFILE_BYTES + 1, b"\0"),
    ],
)
def test_unusable_profile_is_ignored(profile: bytes) -> None:
    image = photograph(6, SIDE, SIDE)
    for data in (saved(image, icc_profile=profile), saved(image, "TIFF", icc_profile=profile)):
        np.testing.assert_array_equal(pixels(data), np.asarray(image))
    if len(profile) < MAX_PROFILE_BYTES:  # Pillow writes no larger ones
        found = pixels(saved(image, "JPEG", icc_profile=profile))
        np.testing.assert_array_equal(found, pixels(saved(image, "JPEG")))


def test_grey_picture_follows_grey_and_rgb_profiles() -> None:
    tones = noise(7, (SIDE, SIDE))
    grey = Image.fromarray(tones.astype(np.uint8))
    rgb = np.repeat(tones[..., None], 3, axis=2)
    for profile, space in (
        (grey_profile(1.8), SRGB._replace(gamma=461 / 256)),
        (rgb_profile(SPACES["ProPhoto RGB"]), SPACES["ProPhoto RGB"]),
    ):
        wanted = to_srgb(rgb, space)
        assert np.abs(wanted - rgb).max() > 10
        assert np.abs(pixels(saved(grey, icc_profile=profile)) - wanted).max() <= 2
        deep = saved(Image.fromarray((tones * 257).astype(np.uint16)), icc_profile=profile)
        assert np.abs(pixels(deep) - wanted).max() <= 2


def test_palette_picture_follows_profile() -> None:
    picture = photograph(8, SIDE, SIDE).quantize(64)
    wanted = to_srgb(np.asarray(picture.convert("RGB")), SPACES["Display P3"])
    assert np.abs(pixels(saved(picture, icc_profile=P3)) - wanted).max() <= 2


def test_cmyk_picture_follows_profile() -> None:
    inks = Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0))
    inks.paste((0, 0, 0, 0), (0, 0, SIDE, SIDE // 2))
    for data in (
        saved(inks, "TIFF", icc_profile=cmyk_profile()),
        saved(inks, "JPEG", quality=100, icc_profile=cmyk_profile()),
    ):
        found = pixels(data)
        assert np.abs(found - found[..., :1]).max() <= 2, "this press prints grey"
        assert found[: SIDE // 2 - 8].min() >= 253
        assert 140 <= found[SIDE // 2 + 8 :].mean() <= 175, "L* = 67"
        assert pixels(data, EARLIER)[-1, -1].tolist() == pytest.approx([0, 255, 255], abs=3)


def test_background_is_not_converted() -> None:
    colours = noise(9, (SIDE, SIDE, 4))
    colours[0, 0, 3], colours[0, 1, 3] = 0, 255
    found = pixels(saved(Image.fromarray(colours.astype(np.uint8)), icc_profile=P3))
    alpha = colours[..., 3:] / 255
    wanted = alpha * to_srgb(colours[..., :3], SPACES["Display P3"]) + (1 - alpha) * GROUND
    assert found[0, 0].tolist() == list(GROUND)
    assert np.abs(found - wanted).max() <= 2

    wide = saved(Image.new("RGB", (SIDE, SIDE // 2), (255, 0, 0)), icc_profile=P3)
    padded = pixels(wide, replace(VIEW, fit="pad"))
    assert padded[0, 0].tolist() == list(GROUND)
    assert padded[SIDE // 2, SIDE // 2].tolist() == [255, 0, 0]


def test_16_bit_colour_follows_profile() -> None:
    colours = noise(10, (SIDE, SIDE, 3))
    compressed = b"P3\0\0" + zlib.compress(P3)
    found = pixels(png(colours * 257, 16, 2, iCCP=compressed))
    assert np.abs(found - to_srgb(colours, SPACES["Display P3"])).max() <= 2


def test_stored_jpeg_is_srgb_without_a_profile() -> None:
    view = StoredView(size=96, fit="crop", store="jpeg")
    data = saved(photograph(11, 320, 240), "JPEG", icc_profile=P3)
    stored = decode_to_jpeg(data, view).jpeg
    assert b"ICC_PROFILE" not in stored
    np.testing.assert_array_equal(decode_stored(stored), decode(data, view).image)


def test_views_name_their_decoder() -> None:
    assert (VIEW.decoder, VIEW.applies_profiles) == (DECODER, True)
    assert not structure(EARLIER.as_dict(), StoredView).applies_profiles
    assert VIEW.key() != EARLIER.key()
    with pytest.raises(MismatchError, match="update afinar"):
        structure({**VIEW.as_dict(), "decoder": "pillow/99"}, StoredView)


def test_pillow_without_littlecms_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: name != "littlecms2")
    with pytest.raises(RequestError, match="without LittleCMS"):
        configure_pillow()
