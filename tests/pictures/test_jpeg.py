"""The jpeg store: the stored pixels are those that the stored JPEG decodes to."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from afinar.config.strict import structure
from afinar.pictures.decode import decode, decode_into, decode_to_jpeg
from afinar.pictures.jpeg import decode_stored, encode_stored
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from tests.pictures.files import photograph, saved

PIXELS = StoredView(size=96, fit="crop")
JPEG = StoredView(size=96, fit="crop", store="jpeg")
FILE = saved(photograph(1, 320, 240), "JPEG", quality=90)


def test_picture_from_file_equals_picture_from_shard() -> None:
    shard = decode_to_jpeg(FILE, JPEG)
    np.testing.assert_array_equal(decode(FILE, JPEG).image, decode_stored(shard.jpeg))
    np.testing.assert_array_equal(decode_stored(memoryview(shard.jpeg)), decode_stored(shard.jpeg))
    assert (shard.width, shard.height) == (320, 240)


def test_pixels_store_has_no_jpeg_loss() -> None:
    exact, stored = decode(FILE, PIXELS).image.astype(int), decode(FILE, JPEG).image
    assert 0 < np.abs(exact - stored).mean() <= 3
    np.testing.assert_array_equal(
        encode_stored(exact.astype(np.uint8)), decode_to_jpeg(FILE, JPEG).jpeg
    )


def test_stored_jpeg_keeps_colour_at_full_resolution() -> None:
    stripes = np.zeros((96, 96, 3), dtype=np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 200
    assert np.abs(decode_stored(encode_stored(stripes)).astype(int) - stripes).mean() <= 4
    with Image.open(io.BytesIO(encode_stored(stripes))) as image:
        assert [part[1:3] for part in getattr(image, "layer")] == [(1, 1)] * 3  # noqa: B009


@pytest.mark.parametrize("view", [PIXELS, JPEG])
def test_decode_into_writes_only_its_slot(view: StoredView) -> None:
    batch = np.full((3, 96, 96, 3), 7, dtype=np.uint8)
    assert decode_into(FILE, view, batch[1]) == (320, 240)
    np.testing.assert_array_equal(batch[1], decode(FILE, view).image)
    assert (batch[[0, 2]] == 7).all()


def test_truncated_file_is_rejected_by_both_stores() -> None:
    for attempt in (decode, decode_to_jpeg):
        with pytest.raises(PictureError) as caught:
            attempt(FILE[:3000], JPEG)
        assert caught.value.reason == Reason.TRUNCATED


def test_store_is_part_of_view_key() -> None:
    assert structure(JPEG.as_dict(), StoredView) == JPEG
    assert JPEG.key() != PIXELS.key()
    record = PIXELS.as_dict()
    del record["store"]  # written before there was a choice
    assert structure(record, StoredView) == PIXELS
