"""Augmentation of a batch on its device, with separate random numbers for each picture.

torchvision's transforms draw one set of numbers per call. Here each picture has its own, derived
from its sample_id (`rng.uniform`), so it is augmented alike in any batch and on any worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.config.augmentation import Augmentation

SampleRng = Callable[[str], Tensor]
"""Returns float32 [n] in [0, 1) for the name of a quantity: one number per picture of the batch."""

_LUMA: Final = (0.299, 0.587, 0.114)  # weights of R, G and B in ITU-R BT.601


def photometric(images: Tensor, augmentation: Augmentation, rng: SampleRng) -> Tensor:
    """Flip pictures and change their brightness, contrast and saturation.

    uint8 [n, s, s, 3] in, the same out, or float32 in 0..255 if a colour change is configured.

    Example with brightness 0.2: draws of 0.0, 0.5 and 0.75 multiply pixels by 0.8, 1.0 and 1.1.
    """
    if augmentation.flip:
        images = torch.where(_per_picture(rng("flip") < 0.5), images.flip(2), images)
    if augmentation.flip_vertical:
        images = torch.where(_per_picture(rng("flip_vertical") < 0.5), images.flip(1), images)

    if augmentation.brightness:
        factor = _around_one(augmentation.brightness, rng("brightness"))
        images = (images * _per_picture(factor)).clamp(0, 255)
    if augmentation.contrast:
        mean = _luma(images).mean(dim=(1, 2, 3), keepdim=True)
        images = _blend(mean, images, _around_one(augmentation.contrast, rng("contrast")))
    if augmentation.saturation:
        factor = _around_one(augmentation.saturation, rng("saturation"))
        images = _blend(_luma(images), images, factor)
    return images


def needs_geometric(augmentation: Augmentation) -> bool:
    """Return True if `geometric` would change pictures."""
    return any(
        (
            augmentation.rotate,
            augmentation.shift,
            augmentation.zoom,
            augmentation.zoom_xy,
            augmentation.shear,
        )
    )


def geometric(images: Tensor, augmentation: Augmentation, rng: SampleRng) -> Tensor:
    """Rotate, shear, zoom and shift float32 [n, 3, s, s] in one bilinear resampling.

    Pixels from outside a picture repeat its border.
    """
    grid = F.affine_grid(affine(augmentation, rng), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def affine(augmentation: Augmentation, rng: SampleRng) -> Tensor:
    """Return float32 [n, 2, 3], the maps from output to input positions, both from -1 to 1.

    The map is a rotation times a shear times scales, then a shift. Example: with shift 0.25 alone
    and a draw of 1.0 for shift_x, the map is (x, y) → (x - 0.5, y): each output pixel is read from
    a quarter of the side further left, so the picture moves to the right.
    """
    angle = torch.deg2rad(_around_zero(augmentation.rotate, rng("rotate")))
    shear = torch.tan(torch.deg2rad(_around_zero(augmentation.shear, rng("shear"))))
    scale = 1 / _around_one(augmentation.zoom, rng("zoom"))
    across, along = (
        scale * _around_one(augmentation.zoom_xy, rng(f"zoom_{axis}")) for axis in ("x", "y")
    )

    # A side is 2 long in these coordinates.
    right = 2 * _around_zero(augmentation.shift, rng("shift_x"))
    down = 2 * _around_zero(augmentation.shift, rng("shift_y"))

    cos, sin = angle.cos(), angle.sin()
    first_row = torch.stack([cos * across, (cos * shear - sin) * along, -right], dim=1)
    second_row = torch.stack([sin * across, (sin * shear + cos) * along, -down], dim=1)
    return torch.stack([first_row, second_row], dim=1)


def _around_zero(amplitude: float, drawn: Tensor) -> Tensor:
    """Map draws in [0, 1) to [-amplitude, amplitude)."""
    return (2 * drawn - 1) * amplitude


def _around_one(amplitude: float, drawn: Tensor) -> Tensor:
    """Map draws in [0, 1) to [1 - amplitude, 1 + amplitude)."""
    return 1 + _around_zero(amplitude, drawn)


def _per_picture(values: Tensor) -> Tensor:
    """Reshape [n] to [n, 1, 1, 1], to broadcast over the pixels of each picture."""
    return values[:, None, None, None]


def _luma(images: Tensor) -> Tensor:
    """Return the grey value of each pixel, [n, s, s, 1]."""
    weights = torch.tensor(_LUMA).to(images.device, non_blocking=True)
    return (images * weights).sum(dim=3, keepdim=True)


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Return base + (images - base) * factor, within 0..255."""
    return (base + (images - base) * _per_picture(factor)).clamp(0, 255)
