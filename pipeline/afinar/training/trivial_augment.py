"""TrivialAugmentWide: one random operation of random strength per picture.

Müller and Hutter 2021, arXiv 2103.10158. Operations and strengths are those of torchvision's
`TrivialAugmentWide`, for batches. There are three differences. A translation is a share of the
side, 1/7 at most, which is 32 of 224 pixels. Operations that move pixels belong to the resampling
of `augment.geometric`: bilinear, and pixels from outside repeat the border. Operations on colours
come before the crop, so their statistics are those of the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

OPERATIONS: Final = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)

_STRENGTHS: Final = 31  # equal steps from 0 to 1
_MAX_SHEAR: Final = 0.99
_MAX_SHIFT: Final = 32 / 224
_MAX_ANGLE: Final = math.radians(135)
_MAX_FACTOR: Final = 0.99
_MAX_LOST_BITS: Final = 6

_LUMA: Final = (0.299, 0.587, 0.114)  # weights of R, G and B in ITU-R BT.601


class Draws(NamedTuple):
    """Operations for n pictures: number of the operation int64 [n], strength and sign [n].

    The strength is from 0 to 1, the sign is 1 or -1, both float32. All are on the CPU.
    """

    operation: Tensor
    strength: Tensor
    sign: Tensor


def draw(rng: Callable[[str], Tensor]) -> Draws:
    """Draw an operation, one of 31 strengths and a sign for each picture, all uniformly."""
    return Draws(
        operation=(rng("trivial_operation") * len(OPERATIONS)).long(),
        strength=(rng("trivial_strength") * _STRENGTHS).floor() / (_STRENGTHS - 1),
        sign=torch.where(rng("trivial_sign") < 0.5, -1.0, 1.0),
    )


def affine(draws: Draws) -> Tensor:
    """Return float32 [n, 2, 3], the maps from output to input positions, both from -1 to 1.

    Pictures whose operation moves no pixel have the identity. A shear keeps the upper left corner
    in its place, as in the paper: x → x + shear * (y + 1).
    """

    def amount(operation: str, most: float) -> Tensor:
        chosen = draws.operation == OPERATIONS.index(operation)
        return torch.where(chosen, draws.sign * draws.strength * most, 0.0)

    shear_x, shear_y = amount("shear_x", _MAX_SHEAR), amount("shear_y", _MAX_SHEAR)
    shift_x, shift_y = amount("translate_x", 2 * _MAX_SHIFT), amount("translate_y", 2 * _MAX_SHIFT)
    angle = amount("rotate", _MAX_ANGLE)
    cos, sin = angle.cos(), angle.sin()

    first_row = torch.stack([cos, shear_x - sin, shear_x - shift_x], dim=1)
    second_row = torch.stack([shear_y + sin, cos, shear_y - shift_y], dim=1)
    return torch.stack([first_row, second_row], dim=1)


def recolour(images: Tensor, draws: Draws) -> Tensor:
    """Apply the operations that change colours: [n, s, s, 3] in 0..255 in, float32 out.

    The draws are on the CPU, so each operation is applied to its own pictures only, and the choice
    does not wait for a GPU.
    """
    changed = images.to(torch.float32, copy=True)
    for name, operation in _COLOUR_OPERATIONS.items():
        chosen = (draws.operation == OPERATIONS.index(name)).nonzero()[:, 0]
        if not len(chosen):
            continue
        strength, sign = (
            values[chosen, None, None, None].to(images.device, non_blocking=True)
            for values in (draws.strength, draws.sign)
        )
        places = chosen.to(images.device, non_blocking=True)
        changed[places] = operation(changed[places], strength, sign)
    return changed


def luma(images: Tensor) -> Tensor:
    """Return the grey value of each pixel, [n, s, s, 1]."""
    weights = torch.tensor(_LUMA).to(images.device, non_blocking=True)
    return (images * weights).sum(dim=3, keepdim=True)


def mean_luma(images: Tensor) -> Tensor:
    """Return the mean grey value of each picture, [n, 1, 1, 1]."""
    return luma(images).mean(dim=(1, 2, 3), keepdim=True)


def blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Return base + (images - base) * factor, within 0..255."""
    return (base + (images - base) * factor).clamp(0, 255)


def _factor(strength: Tensor, sign: Tensor) -> Tensor:
    return 1 + sign * strength * _MAX_FACTOR


def _brightness(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return (images * _factor(strength, sign)).clamp(0, 255)


def _saturation(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return blend(luma(images), images, _factor(strength, sign))


def _contrast(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return blend(mean_luma(images), images, _factor(strength, sign))


def _sharpness(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Blend with a picture smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13 inside its border."""
    kernel = torch.ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    kernel = (kernel / 13).to(images.device, non_blocking=True)
    smooth = images.clone()
    inside = F.conv2d(images.permute(0, 3, 1, 2), kernel, groups=3)
    smooth[:, 1:-1, 1:-1] = inside.permute(0, 2, 3, 1)
    return blend(smooth, images, _factor(strength, sign))


def _posterize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Clear up to six of the lower bits."""
    step = 2 ** (strength * _MAX_LOST_BITS).round()
    return (images.round() / step).floor() * step


def _solarize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Invert pixels from a threshold on, which falls from 255 to 0."""
    return torch.where(images >= 255 * (1 - strength), 255 - images, images)


def _autocontrast(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Stretch each channel to 0..255, unless all of its pixels are equal."""
    low, high = images.amin(dim=(1, 2), keepdim=True), images.amax(dim=(1, 2), keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (images - low) * (255 / spread.clamp_min(1e-6)), images)


def _equalize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Equalize the histogram of each channel, as Pillow's `ImageOps.equalize` does.

    Pillow spreads the pixels, but those of the brightest value that occurs, over 255 equal steps.
    """
    pixels = images.round().long().flatten(1, 2).transpose(1, 2)  # [n, 3, s * s]
    histogram = pixels.new_zeros(*pixels.shape[:2], 256)
    histogram.scatter_add_(2, pixels, torch.ones_like(pixels))

    values = torch.arange(256, device=images.device)
    brightest = torch.where(histogram > 0, values, 0).amax(dim=2, keepdim=True)
    step = (pixels.shape[2] - histogram.gather(2, brightest)) // 255
    below = histogram.cumsum(dim=2) - histogram
    table = ((below + step // 2) // step.clamp_min(1)).clamp(0, 255)

    equalized = table.gather(2, pixels).transpose(1, 2).reshape(images.shape).float()
    return torch.where(step.transpose(1, 2)[:, None] > 0, equalized, images)


_COLOUR_OPERATIONS: Final[dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "brightness": _brightness,
    "saturation": _saturation,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
