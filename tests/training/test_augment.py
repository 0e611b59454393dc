"""Augmentation: each picture by its own numbers, the same whoever meets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from afinar.config.augmentation import Augmentation, parse_augment
from afinar.errors import RequestError
from afinar.training.augment import SampleRng, affine, move, photometric
from afinar.training.rng import uniform
from torch import Tensor

EVERYTHING = parse_augment(
    "flip,flip-vertical,rotate:40,shift:0.2,zoom:0.2,shear:10,brightness:0.3,contrast:0.3,saturation:0.3",
    "full",
)


def pictures(count: int, side: int = 32) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    )


def drawn_for(keys: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> SampleRng:
    return lambda what: torch.from_numpy(uniform(keys, 0, 0, what).astype(np.float32))


def constant(values: dict[str, float], count: int = 1) -> SampleRng:
    return lambda what: torch.full((count,), values.get(what, 0.5))


def augmented(images: Tensor, what: Augmentation, draw: SampleRng) -> Tensor:
    return move(photometric(images, what, draw).permute(0, 3, 1, 2).float(), what, draw)


def test_a_picture_is_augmented_alike_in_any_batch() -> None:
    images, keys = pictures(12), np.arange(1, 13, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    together = augmented(images, EVERYTHING, drawn_for(keys))
    apart = torch.cat([augmented(images[[n]], EVERYTHING, drawn_for(keys[[n]])) for n in range(12)])
    assert torch.allclose(together, apart, atol=1e-3)
    assert len({float(one.mean()) for one in together}) == 12, "and each picture otherwise"


def test_flips_are_mirrors() -> None:
    images = pictures(1)
    for name, axis in (("flip", 2), ("flip_vertical", 1)):
        what = Augmentation(**{name: True})
        assert torch.equal(photometric(images, what, constant({name: 0.1})), images.flip(axis))
        assert torch.equal(photometric(images, what, constant({name: 0.9})), images)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    images = pictures(1).permute(0, 3, 1, 2).float()
    turned = move(images, Augmentation(rotate=90), constant({"rotate": 1.0}))
    assert torch.allclose(turned, images.rot90(1, (2, 3)), atol=1e-3) or torch.allclose(
        turned, images.rot90(-1, (2, 3)), atol=1e-3
    )


def test_a_shift_moves_by_its_share_of_the_side_and_repeats_the_border() -> None:
    images = pictures(1).permute(0, 3, 1, 2).float()
    moved = move(
        images, Augmentation(shift=0.25), constant({"shift_x": 1.0})
    )  # by a quarter of 32: 8 columns
    assert torch.allclose(moved[..., 8:], images[..., :-8], atol=1e-3)
    assert torch.allclose(moved[..., :8], images[..., :1].expand(-1, -1, -1, 8), atol=1e-3)


def test_zoom_enlarges_and_shrinks_about_the_middle() -> None:
    larger = affine(Augmentation(zoom=0.5), constant({"zoom": 1.0}))
    smaller = affine(Augmentation(zoom=0.5), constant({"zoom": 0.0}))
    assert torch.allclose(larger, torch.tensor([[[1 / 1.5, 0, 0], [0, 1 / 1.5, 0]]]), atol=1e-6)
    assert torch.allclose(smaller, torch.tensor([[[2.0, 0, 0], [0, 2.0, 0]]]), atol=1e-6)


def test_colours() -> None:
    images = pictures(1)
    brighter = photometric(images, Augmentation(brightness=0.5), constant({"brightness": 1.0}))
    assert torch.allclose(brighter, (images * 1.5).clamp(0, 255))
    grey = photometric(images, Augmentation(saturation=1.0), constant({"saturation": 0.0}))
    assert torch.allclose(grey, grey[..., :1].expand_as(grey), atol=1e-3), (
        "without saturation all is grey"
    )
    flat = photometric(images, Augmentation(contrast=1.0), constant({"contrast": 0.0}))
    assert float(flat.std()) < 1e-3, "without contrast all is alike"
    unchanged = photometric(images, EVERYTHING, constant({"flip": 0.9, "flip_vertical": 0.9}))
    assert torch.allclose(unchanged, images.float(), atol=1e-3)


@pytest.mark.parametrize(
    "spec", ["turn:40", "rotate", "rotate:400", "flip:1", "zoom:-0.1", "rotate:40,,flip", "zoom:x"]
)
def test_a_wrong_augmentation_is_refused(spec: str) -> None:
    with pytest.raises(RequestError, match="--augment"):
        parse_augment(spec, "full")


def test_auto_is_flip_where_the_network_sees_pictures_anew() -> None:
    assert parse_augment("auto", "full") == Augmentation(flip=True)
    assert not parse_augment("auto", "frozen").any
    assert not parse_augment("none", "full").any
