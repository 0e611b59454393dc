"""Augmentation of a batch on its device, with separate random numbers for each picture.

torchvision's transforms draw one set of numbers per call. Here each picture has its own, derived
from its sample_id (`rng.uniform`), so it is augmented alike in any batch and on any worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.config.augmentation import Augmentation
from afinar.training import trivial_augment as trivial
from afinar.training.trivial_augment import blend, luma, mean_luma

SampleRng = Callable[[str], Tensor]
"""Returns float32 [n] in [0, 1), on the CPU, for the name of a quantity: one per picture."""

# Random crops and erased rectangles as in torchvision: areas as shares of the picture.
_CROP_RATIOS: Final = (3 / 4, 4 / 3)
_ERASED_AREAS: Final = (0.02, 0.33)
_ERASED_RATIOS: Final = (0.3, 3.3)
_ATTEMPTS: Final = 10  # to draw a rectangle that fits into the picture


def photometric(images: Tensor, augmentation: Augmentation, rng: SampleRng) -> Tensor:
    """Flip pictures and change their colours.

    uint8 [n, s, s, 3] in, the same out, or float32 in 0..255 if a colour change is configured.

    Example with brightness 0.2: draws of 0.0, 0.5 and 0.75 multiply pixels by 0.8, 1.0 and 1.1.
    """
    if augmentation.flip:
        images = torch.where(_per_picture(rng("flip") < 0.5, images), images.flip(2), images)
    if augmentation.flip_vertical:
        flipped = _per_picture(rng("flip_vertical") < 0.5, images)
        images = torch.where(flipped, images.flip(1), images)

    if augmentation.brightness:
        factor = _around_one(augmentation.brightness, rng("brightness"))
        images = (images * _per_picture(factor, images)).clamp(0, 255)
    if augmentation.contrast:
        factor = _around_one(augmentation.contrast, rng("contrast"))
        images = blend(mean_luma(images), images, _per_picture(factor, images))
    if augmentation.saturation:
        factor = _around_one(augmentation.saturation, rng("saturation"))
        images = blend(luma(images), images, _per_picture(factor, images))
    if augmentation.trivial:
        images = trivial.recolour(images, trivial.draw(rng))
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
            augmentation.crop,
            augmentation.trivial,
        )
    )


def geometric(
    images: Tensor, augmentation: Augmentation, rng: SampleRng, side: int | None = None
) -> Tensor:
    """Crop, rotate, shear, zoom and shift float32 [n, 3, s, s] in one bilinear resampling.

    Returns float32 [n, 3, side, side]; `side` is by default that of `images`. Pixels from outside a
    picture repeat its border. A crop is the frame of the other changes, which move pixels into it
    that lie outside the crop but inside the picture.
    """
    side = side or images.shape[-1]
    maps = affine(augmentation, rng)
    if augmentation.trivial:
        maps = _compose(maps, trivial.affine(trivial.draw(rng)))
    if augmentation.crop:
        maps = _compose(_crop_maps(crop_boxes(augmentation.crop, rng)), maps)

    maps = maps.to(images.device, non_blocking=True)
    grid = F.affine_grid(maps, [len(images), 3, side, side], align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def erase(inputs: Tensor, augmentation: Augmentation, rng: SampleRng) -> Tensor:
    """Set a random rectangle of some pictures to 0, the mean colour of normalised inputs.

    Random erasing with torchvision's defaults: the rectangle has 2 to 33 % of the picture and an
    aspect ratio from 0.3 to 3.3. `inputs` float32 [n, 3, s, s] are normalised.
    """
    boxes = erased_boxes(augmentation.erase, rng, inputs.shape[-1])
    return inputs.masked_fill(box_mask(boxes, inputs.shape[-1], inputs.device), 0.0)


class Boxes(NamedTuple):
    """Rectangles of n pictures, [n] each: in pixels (int64), or as shares of the side (float32)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def box_mask(boxes: Boxes, side: int, device: torch.device) -> Tensor:
    """Return bool [n, 1, side, side], True inside the rectangles, which are in pixels."""
    pixels = torch.arange(side)
    rows, columns = (
        ((pixels >= start[:, None]) & (pixels < (start + length)[:, None])).to(
            device, non_blocking=True
        )
        for start, length in ((boxes.top, boxes.height), (boxes.left, boxes.width))
    )
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def crop_boxes(min_area: float, rng: SampleRng) -> Boxes:
    """Draw the crops of `torchvision.transforms.RandomResizedCrop`, as shares of the side.

    The area is drawn from `min_area` to 1, the aspect ratio from 3/4 to 4/3 on a logarithmic scale.
    The first of ten such rectangles that fits is taken, or the whole picture if none does.
    """
    area, ratio = _draw_rectangles(rng, "crop", (min_area, 1.0), _CROP_RATIOS)
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    (width, height), any_fits = _first(torch.stack([width, height]), fits)
    width, height = width.where(any_fits, 1.0), height.where(any_fits, 1.0)
    top, left = (1 - height) * rng("crop_y"), (1 - width) * rng("crop_x")
    return Boxes(top, left, height, width)


def erased_boxes(probability: float, rng: SampleRng, side: int) -> Boxes:
    """Draw the rectangles of `torchvision.transforms.RandomErasing`, in pixels; many are empty."""
    area, ratio = _draw_rectangles(rng, "erase", _ERASED_AREAS, _ERASED_RATIOS)
    height, width = ((side * share.sqrt()).round() for share in (area * ratio, area / ratio))
    fits = (height < side) & (width < side)
    (height, width), any_fits = _first(torch.stack([height, width]), fits)

    erased = any_fits & (rng("erase") < probability)
    height, width = height.where(erased, 0.0), width.where(erased, 0.0)
    top, left = (side - height + 1) * rng("erase_y"), (side - width + 1) * rng("erase_x")
    return Boxes(top.long(), left.long(), height.long(), width.long())


def _draw_rectangles(
    rng: SampleRng, name: str, areas: tuple[float, float], ratios: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Draw ten areas and aspect ratios per picture, float32 [10, n] each."""
    area = torch.stack([rng(f"{name}_area_{attempt}") for attempt in range(_ATTEMPTS)])
    ratio = torch.stack([rng(f"{name}_ratio_{attempt}") for attempt in range(_ATTEMPTS)])
    low, high = (math.log(bound) for bound in ratios)
    return areas[0] + (areas[1] - areas[0]) * area, (low + (high - low) * ratio).exp()


def _first(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return of `values` [k, 10, n] those of the first valid attempt, [k, n], and if there is one.

    `valid` is bool [10, n].
    """
    attempt = valid.to(torch.uint8).argmax(dim=0)
    return values[:, attempt, torch.arange(values.shape[2])], valid.any(dim=0)


def _crop_maps(boxes: Boxes) -> Tensor:
    """Return the maps from positions in the crop to positions in the picture, [n, 2, 3].

    Example: the left half of a picture has width 0.5, and x → 0.5 x - 0.5.
    """
    zero = torch.zeros_like(boxes.width)
    first_row = torch.stack([boxes.width, zero, 2 * boxes.left + boxes.width - 1], dim=1)
    second_row = torch.stack([zero, boxes.height, 2 * boxes.top + boxes.height - 1], dim=1)
    return torch.stack([first_row, second_row], dim=1)


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the maps that apply `inner`, then `outer`; all are [n, 2, 3]."""
    linear = outer[:, :, :2] @ inner
    return torch.cat([linear[:, :, :2], linear[:, :, 2:] + outer[:, :, 2:]], dim=2)


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


def _per_picture(values: Tensor, images: Tensor) -> Tensor:
    """Reshape [n] to [n, 1, 1, 1] on the device of `images`, to broadcast over their pixels."""
    return values[:, None, None, None].to(images.device, non_blocking=True)
