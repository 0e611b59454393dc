"""The resize, compared with a cubic convolution and with Pillow's resize."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from afinar.config.ingest import FitMode
from afinar.pictures import resize as module
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.resize import Box, resize
from tests.pictures.files import noise, photograph, saved

SHAPES = [
    ((500, 375), (64, 64), (62.5, 0, 437.5, 375)),
    ((375, 500), (64, 64), (0, 62.5, 375, 437.5)),  # tall: the rows go first
    ((300, 70), (64, 64), (115, 0, 185, 70)),
    ((40, 30), (64, 64), (5, 0, 35, 30)),  # enlarged
    ((64, 64), (64, 64), (0, 0, 64, 64)),
    ((400, 300), (64, 48), (0, 0, 400, 300)),
    ((7, 90), (64, 64), (0, 0, 7, 90)),
    ((1, 1), (64, 64), (0, 0, 1, 1)),
]


def weights(length: int, start: float, stop: float, size: int) -> NDArray[np.float64]:
    """Return [size, length]: the cubic of a = -1/2 (Keys 1981), widened by scales above 1."""
    scale = (stop - start) / size
    centres = start + (np.arange(size)[:, None] + 0.5) * scale
    x = np.abs(np.arange(length)[None, :] + 0.5 - centres) / max(scale, 1.0)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    result: NDArray[np.float64] = kernel / kernel.sum(axis=1, keepdims=True)
    return result


def convolved(pixels: NDArray[Any], size: tuple[int, int], box: Box) -> NDArray[np.float64]:
    height, width = pixels.shape[:2]
    across, down = weights(width, box[0], box[2], size[0]), weights(height, box[1], box[3], size[1])
    result: NDArray[np.float64] = (
        down @ (across @ pixels.astype(np.float64)).transpose(2, 0, 1)
    ).transpose(1, 2, 0)
    return result


@pytest.mark.parametrize(("source", "size", "box"), SHAPES)
def test_resize_equals_cubic_convolution(
    source: tuple[int, int], size: tuple[int, int], box: Box
) -> None:
    pixels = (
        noise(1, (source[1], source[0], 3), 128) + 64
    )  # no sum leaves 0 to 255 between the passes
    found = resize(Image.fromarray(pixels.astype(np.uint8)), size, box)
    assert found.dtype == np.uint8
    assert np.abs(found - convolved(pixels, size, box)).max() <= 1.5


@pytest.mark.skipif(not module.HAS_VECTORS, reason="cykooz-resizer has no wheel for this platform")
@pytest.mark.parametrize(("source", "size", "box"), SHAPES)
def test_pillow_resize_differs_by_at_most_one_level(
    source: tuple[int, int], size: tuple[int, int], box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(noise(2, (source[1], source[0], 3)).astype(np.uint8))
    ours = resize(image, size, box).astype(int)
    monkeypatch.setattr(module, "HAS_VECTORS", False)
    pillows = resize(image, size, box).astype(int)
    difference = np.abs(ours - pillows)
    assert difference.max() <= 2, (
        "noise, enlarged: a level from the first pass can grow in the second"
    )
    assert (difference > 1).mean() <= 0.001
    assert difference.mean() <= 0.02


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("source", [(500, 375), (320, 480), (1600, 1200)])
def test_sample_with_and_without_vectors_is_equal(
    fit: FitMode, kind: str, source: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, view = saved(photograph(3, *source), kind), StoredView(size=96, fit=fit)
    ours = decode(data, view).image.astype(int)
    monkeypatch.setattr(module, "HAS_VECTORS", False)
    assert np.abs(ours - decode(data, view).image).max() <= 1


@pytest.mark.parametrize(
    ("source", "band"), [((80, 40), np.s_[8:24, :]), ((40, 80), np.s_[:, 8:24])]
)
def test_pad_centres_picture(source: tuple[int, int], band: tuple[slice, slice]) -> None:
    data = saved(Image.new("RGB", source, (10, 20, 30)))
    found = decode(data, StoredView(size=32, fit="pad", background=(1, 2, 3))).image
    wanted = np.empty((32, 32, 3), dtype=np.uint8)
    wanted[:] = 1, 2, 3
    wanted[band] = 10, 20, 30
    np.testing.assert_array_equal(found, wanted)


def test_crop_takes_centre() -> None:
    pixels = noise(4, (32, 52, 3)).astype(np.uint8)
    found = decode(saved(Image.fromarray(pixels)), StoredView(size=32, fit="crop")).image
    np.testing.assert_array_equal(found, pixels[:, 10:42])
