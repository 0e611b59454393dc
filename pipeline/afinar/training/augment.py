"""Augmentation of whole batches, each picture by its own numbers.

torchvision's transforms draw one set of numbers per call; here they come per sample, so that a picture is
augmented alike whoever meets it in whatever batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.config.augmentation import Augmentation

SampleRng = Callable[[str], Tensor]
"""Name of a quantity → float32 [n] in [0, 1), one number per picture."""

_GREY: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601


def photometric(images: Tensor, what: Augmentation, draw: SampleRng) -> Tensor:
    """Mirror, and change brightness, contrast and saturation.

    uint8 [n, s, s, 3] → the same, or float32 in 0..255 where colours changed.
    """
    for wanted, axis, name in ((what.flip, 2, "flip"), (what.flip_vertical, 1, "flip_vertical")):
        if wanted:
            images = torch.where(_each(draw(name) < 0.5), images.flip(axis), images)
    if what.brightness:
        images = (images * _each(_about_one(what.brightness, draw("brightness")))).clamp(0, 255)
    if what.contrast:
        mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
        images = _blend(mean, images, _about_one(what.contrast, draw("contrast")))
    if what.saturation:
        images = _blend(_grey(images), images, _about_one(what.saturation, draw("saturation")))
    return images


def moves(what: Augmentation) -> bool:
    """Whether `move` has anything to do."""
    return any((what.rotate, what.shift, what.zoom, what.shear))


def move(images: Tensor, what: Augmentation, draw: SampleRng) -> Tensor:
    """Rotate, shear, zoom and shift by one bilinear resampling; what comes in from outside repeats the border.

    float32 [n, 3, s, s] → the same.
    """
    grid = F.affine_grid(affine(what, draw), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def affine(what: Augmentation, draw: SampleRng) -> Tensor:
    """float32 [n, 2, 3]: where in the picture, from -1 to 1, each place of the result is taken from."""
    angle = torch.deg2rad(_about_zero(what.rotate, draw("rotate")))
    lean = torch.tan(torch.deg2rad(_about_zero(what.shear, draw("shear"))))
    scale = 1 / _about_one(what.zoom, draw("zoom"))
    right, down = (2 * _about_zero(what.shift, draw(name)) for name in ("shift_x", "shift_y"))
    cos, sin = angle.cos() * scale, angle.sin() * scale
    first = torch.stack([cos, cos * lean - sin, -right], dim=1)
    second = torch.stack([sin, sin * lean + cos, -down], dim=1)
    return torch.stack([first, second], dim=1)


def _about_zero(most: float, drawn: Tensor) -> Tensor:
    return (2 * drawn - 1) * most


def _about_one(most: float, drawn: Tensor) -> Tensor:
    return 1 + _about_zero(most, drawn)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor(_GREY).to(images.device, non_blocking=True)
    return (images * weights).sum(dim=3, keepdim=True)


def _blend(base: Tensor, images: Tensor, amount: Tensor) -> Tensor:
    return (base + (images - base) * _each(amount)).clamp(0, 255)
