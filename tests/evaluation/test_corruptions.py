"""Common corruptions: pure functions of uint8 batches."""

from __future__ import annotations

import numpy as np
import pytest

from afinar.config.evaluate import CORRUPTIONS
from afinar.evaluation.corruptions import STRENGTHS, Corruption, corruptions

BATCH = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3)).astype(np.uint8)
BATCH = BATCH.repeat(4, axis=1).repeat(4, axis=2)


def test_each_corruption_has_three_strengths() -> None:
    found = corruptions(CORRUPTIONS)
    assert len(found) == len(CORRUPTIONS) * len(STRENGTHS)
    assert len({corruption.setting for corruption in found}) >= len(found) - 3


@pytest.mark.parametrize("corruption", corruptions(CORRUPTIONS), ids=lambda c: c.name)
def test_result_depends_on_the_picture_alone(corruption: Corruption) -> None:
    before = BATCH.copy()
    result = corruption(BATCH)
    np.testing.assert_array_equal(BATCH, before)
    assert result.dtype == np.uint8
    assert result.shape == BATCH.shape
    np.testing.assert_array_equal(result, corruption(BATCH))
    for picture, corrupted in zip(BATCH, result, strict=True):
        np.testing.assert_array_equal(corruption(picture[None])[0], corrupted)
    assert (result != BATCH).any()
    assert corruption(BATCH[:0]).shape == BATCH[:0].shape


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strengths_change_pictures_more_and_more(name: str) -> None:
    ramp = np.linspace(0, 255, 64)[None, :, None, None] + np.zeros((1, 64, 64, 3))
    pictures = ramp.astype(np.uint8) if name == "rotation" else BATCH
    changes = [
        float(np.abs(corruption(pictures).astype(float) - pictures).mean())
        for corruption in corruptions((name,))
    ]
    assert changes[0] < changes[1] < changes[2]


def test_what_some_corruptions_do() -> None:
    gray = np.full((1, 32, 32, 3), 200, dtype=np.uint8)
    dark, flat, turned = (
        corruptions((name,))[0] for name in ("brightness", "contrast", "rotation")
    )
    assert (dark(gray) == 140).all()
    assert (flat(gray) == 200).all()
    # No black corners: a picture of one colour stays as it is.
    assert (turned(gray) == 200).all()
