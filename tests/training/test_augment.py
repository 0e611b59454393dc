"""Augmentation of batches, each picture by its own random numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from afinar.config.augmentation import Augmentation, parse_augment
from afinar.training.augment import SampleRng, affine, geometric, photometric
from afinar.training.rng import uniform

ALL_CHANGES = parse_augment(
    "flip,flip-vertical,rotate:40,shift:0.2,zoom:0.2,shear:10,brightness:0.3,contrast:0.3,"
    "saturation:0.3",
    "full",
)


def pictures(count: int, side: int = 32) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    )


def rng_of(keys: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> SampleRng:
    return lambda name: torch.from_numpy(uniform(keys, 0, 0, name).astype(np.float32))


def constant(values: dict[str, float], count: int = 1) -> SampleRng:
    return lambda name: torch.full((count,), values.get(name, 0.5))


def augment(images: Tensor, augmentation: Augmentation, rng: SampleRng) -> Tensor:
    changed = photometric(images, augmentation, rng)
    return geometric(changed.permute(0, 3, 1, 2).float(), augmentation, rng)


def test_a_picture_is_augmented_alike_alone_and_in_a_batch() -> None:
    images, keys = pictures(12), np.arange(1, 13, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    together = augment(images, ALL_CHANGES, rng_of(keys))
    alone = [augment(images[[n]], ALL_CHANGES, rng_of(keys[[n]])) for n in range(12)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-3)
    assert len({float(image.mean()) for image in together}) == 12, "and each picture differently"


def test_flip_mirrors_for_draws_below_half() -> None:
    images = pictures(1)
    for name, axis in (("flip", 2), ("flip_vertical", 1)):
        augmentation = Augmentation(**{name: True})
        flipped = photometric(images, augmentation, constant({name: 0.1}))
        assert torch.equal(flipped, images.flip(axis))
        assert torch.equal(photometric(images, augmentation, constant({name: 0.9})), images)


def test_rotate_by_90_degrees_is_a_quarter_turn() -> None:
    images = pictures(1).permute(0, 3, 1, 2).float()
    turned = geometric(images, Augmentation(rotate=90), constant({"rotate": 1.0}))
    assert torch.allclose(turned, images.rot90(1, (2, 3)), atol=1e-3) or torch.allclose(
        turned, images.rot90(-1, (2, 3)), atol=1e-3
    )


def test_shift_moves_by_its_share_of_the_side_and_repeats_the_border() -> None:
    images = pictures(1).permute(0, 3, 1, 2).float()
    # A quarter of 32 pixels: 8 columns.
    moved = geometric(images, Augmentation(shift=0.25), constant({"shift_x": 1.0}))
    assert torch.allclose(moved[..., 8:], images[..., :-8], atol=1e-3)
    assert torch.allclose(moved[..., :8], images[..., :1].expand(-1, -1, -1, 8), atol=1e-3)


def test_zoom_scales_about_the_centre() -> None:
    larger = affine(Augmentation(zoom=0.5), constant({"zoom": 1.0}))
    smaller = affine(Augmentation(zoom=0.5), constant({"zoom": 0.0}))
    assert torch.allclose(larger, torch.tensor([[[1 / 1.5, 0, 0], [0, 1 / 1.5, 0]]]), atol=1e-6)
    assert torch.allclose(smaller, torch.tensor([[[2.0, 0, 0], [0, 2.0, 0]]]), atol=1e-6)


def test_colour_changes_scale_brightness_saturation_and_contrast() -> None:
    images = pictures(1)
    brighter = photometric(images, Augmentation(brightness=0.5), constant({"brightness": 1.0}))
    assert torch.allclose(brighter, (images * 1.5).clamp(0, 255))
    grey = photometric(images, Augmentation(saturation=1.0), constant({"saturation": 0.0}))
    assert torch.allclose(grey, grey[..., :1].expand_as(grey), atol=1e-3), (
        "saturation 0 makes all channels equal"
    )
    flat = photometric(images, Augmentation(contrast=1.0), constant({"contrast": 0.0}))
    assert float(flat.std()) < 1e-3, "contrast 0 makes all pixels equal"
    unchanged = photometric(images, ALL_CHANGES, constant({"flip": 0.9, "flip_vertical": 0.9}))
    assert torch.allclose(unchanged, images.float(), atol=1e-3)
