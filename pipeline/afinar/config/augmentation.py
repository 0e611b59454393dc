"""Augmentation of training pictures, as `--augment` describes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final

from afinar.errors import RequestError

_SWITCHES: Final = ("flip", "flip_vertical", "trivial")
_LIMITS: Final = {
    "rotate": 180.0,
    "shear": 60.0,
    "shift": 1.0,
    "zoom": 0.9,
    "zoom_xy": 0.9,
    "brightness": 1.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "crop": 0.99,
    "erase": 1.0,
    "mixup": 10.0,
    "cutmix": 10.0,
}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges of the random changes to a training picture; 0 or False means no such change.

    `rotate` and `shear` are in degrees, drawn from -value to +value. `shift` is a share of the
    picture's side, drawn alike. The others draw a factor from 1 - value to 1 + value; `zoom_xy`
    draws one for each axis, and divides by it, as Keras' `zoom_range` does.

    `crop` is the least share of the picture's area that a random crop has; its aspect ratio is from
    3/4 to 4/3. `trivial` is TrivialAugmentWide (Müller and Hutter 2021, arXiv 2103.10158). `erase`
    is the probability of random erasing (Zhong et al. 2017, arXiv 1708.04896). `mixup` (Zhang et
    al. 2017, arXiv 1710.09412) and `cutmix` (Yun et al. 2019, arXiv 1905.04899) are the parameter
    of the symmetric beta distribution from which the share of a picture in its mix is drawn; with
    both of them each picture is mixed in one of the two ways, with equal probability.
    """

    flip: bool = False
    flip_vertical: bool = False
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    zoom_xy: float = 0.0
    shear: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    crop: float = 0.0
    trivial: bool = False
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def describe(self) -> str:
        """Return the value of `--augment` that means these changes."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            name = field.name.replace("_", "-")
            if value:
                parts.append(name if value is True else f"{name}:{value:g}")
        return ",".join(parts) or "none"

    @property
    def any(self) -> bool:
        """True if there is at least one change."""
        return self != Augmentation()

    @property
    def mixes(self) -> bool:
        """True if pictures are mixed with others."""
        return self.mixup > 0 or self.cutmix > 0


def parse_augment(spec: str, regime: str) -> Augmentation:
    """Parse the value of `--augment`. Raises RequestError that names the wrong part.

    Example: "rotate:40,flip" gives Augmentation(rotate=40.0, flip=True).
    """
    if spec == "auto":
        return Augmentation(flip=regime != "frozen")

    changes: dict[str, Any] = {}
    for part in [] if spec == "none" else spec.split(","):
        name, _, amount = (piece.strip() for piece in part.partition(":"))
        field = name.replace("-", "_")
        if field in _SWITCHES and not amount:
            changes[field] = True
        else:
            changes[field] = _parse_amount(field, amount, part)

    augmentation = Augmentation(**changes)
    if augmentation.mixes and regime == "frozen":
        raise RequestError(
            f"--augment {spec}: mixed pictures train a backbone, and --regime frozen trains only "
            "the head, on features of whole pictures: leave out mixup and cutmix, or give "
            "--regime last:1 or full"
        )
    return augmentation


def _parse_amount(field: str, amount: str, part: str) -> float:
    try:
        value = float(amount)
    except ValueError:
        value = math.nan

    # NaN fails the comparison too.
    if field not in _LIMITS or not 0 < value <= _LIMITS[field]:
        ranges = ", ".join(
            f"{name.replace('_', '-')}:0-{limit:g}" for name, limit in _LIMITS.items()
        )
        raise RequestError(
            f"--augment {part!r}: choose from flip, flip-vertical, trivial, {ranges}, or `none`"
        )
    return value
