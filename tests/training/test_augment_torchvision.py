"""Augmentation of a photograph against torchvision, whose definitions it follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from afinar.config.augmentation import Augmentation
from afinar.training import trivial_augment
from afinar.training.augment import (
    SampleRng,
    crop_boxes,
    erase,
    erased_boxes,
    geometric,
    photometric,
)
from afinar.training.rng import uniform

STEPS = 31  # of the strength of TrivialAugment
SIGNED = 0.99  # largest change of a factor, or shear


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """uint8 [3, 224, 224], with pixels of every value."""
    image = torch.from_numpy(load_sample_images().images[0][:400, :400].copy()).permute(2, 0, 1)
    resized: Tensor = tv.resize(image, [224, 224], antialias=True)
    return resized


def constant(values: dict[str, float], count: int = 1) -> SampleRng:
    return lambda name: torch.full((count,), values.get(name, 0.0))


def of_keys(count: int) -> SampleRng:
    keys = np.random.default_rng(0).integers(0, 2**63, count, dtype=np.uint64)
    return lambda name: torch.from_numpy(uniform(keys, 0, 0, name).astype(np.float32))


def hwc(image: Tensor) -> Tensor:
    return image.permute(1, 2, 0)[None]


def chw(images: Tensor) -> Tensor:
    return images[0].permute(2, 0, 1)


def magnitude(operation: str, step: int) -> float:
    """Return the magnitude that torchvision takes for one of its 31 steps."""
    limit = {
        "rotate": 135.0,
        "translate_x": 32.0,
        "translate_y": 32.0,
        "posterize": 6.0,
        "solarize": 1.0,
    }.get(operation, SIGNED)
    strength = step / (STEPS - 1)
    if operation == "posterize":
        return round(8 - limit * strength)
    return 1 - strength if operation == "solarize" else limit * strength


NAMES = {
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "saturation": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "identity": "Identity",
}


def torchvision_operation(image: Tensor, operation: str, amount: float) -> Tensor:
    """Apply an operation of torchvision's TrivialAugmentWide."""
    transform: Any = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    changed: Tensor = transform._apply_image_or_video_transform(
        image, NAMES[operation], amount, interpolation=InterpolationMode.BILINEAR, fill={}
    )
    return changed


def draws(operation: str, step: int, sign: float) -> SampleRng:
    number = trivial_augment.OPERATIONS.index(operation)
    return constant(
        {
            "trivial_operation": (number + 0.5) / len(trivial_augment.OPERATIONS),
            "trivial_strength": (step + 0.5) / STEPS,
            "trivial_sign": 0.75 if sign > 0 else 0.25,
        }
    )


@pytest.mark.parametrize("step", [0, 11, 30])
@pytest.mark.parametrize("operation", list(NAMES)[5:])
def test_operations_on_colours_are_those_of_torchvision(
    photograph: Tensor, operation: str, step: int
) -> None:
    for sign in (-1, 1):
        unsigned = operation in {"posterize", "solarize"}
        amount = magnitude(operation, step) * (1 if unsigned else sign)
        expected = torchvision_operation(photograph, operation, amount)
        ours = photometric(
            hwc(photograph), Augmentation(trivial=True), draws(operation, step, sign)
        )
        difference = (chw(ours) - expected).abs()
        # torchvision cuts off the decimals of results and of grey values.
        is_exact = operation in {"identity", "posterize", "solarize", "equalize"}
        assert difference.max() <= (0 if is_exact else 2), (operation, sign)
        assert difference.mean() <= 1.1, (operation, sign)


@pytest.mark.parametrize("step", [15, 30])
@pytest.mark.parametrize("operation", list(NAMES)[:5])
def test_operations_that_move_pixels_are_those_of_torchvision_inside_the_frame(
    photograph: Tensor, operation: str, step: int
) -> None:
    inside = torch.full((1, 224, 224), 255.0)
    for sign in (-1, 1):
        amount = sign * magnitude(operation, step)
        expected = torchvision_operation(photograph.float(), operation, amount)
        # Outside of the picture torchvision puts black pixels, and ours repeat the border.
        frame = torchvision_operation(inside, operation, amount) > 254.9
        ours = geometric(
            photograph[None].float(), Augmentation(trivial=True), draws(operation, step, sign)
        )
        assert frame.float().mean() > 0.3
        assert ((ours[0] - expected).abs() * frame).max() < 0.1, (operation, sign)


def test_crop_is_that_of_torchvision_for_the_same_rectangle(photograph: Tensor) -> None:
    """An area of 1/4 at three tenths of the free space, enlarged to the network's input."""
    values = {"crop_area_0": (0.25 - 0.1) / 0.9, "crop_ratio_0": 0.5, "crop_y": 0.25, "crop_x": 0.5}
    cropped = geometric(
        photograph[None].float(), Augmentation(crop=0.1), constant(values), side=160
    )
    expected = tv.resized_crop(photograph.float(), 28, 56, 112, 112, [160, 160], antialias=False)
    # At its border torchvision repeats the crop's pixels, where ours read those beyond it.
    assert (cropped[0] - expected)[:, 1:-1, 1:-1].abs().max() < 0.05


def test_crops_have_the_distribution_of_torchvision() -> None:
    torch.manual_seed(0)
    image = torch.zeros(3, 1000, 1000)
    reference = v2.RandomResizedCrop(10, scale=(0.08, 1.0))
    theirs = [reference.make_params([image]) for _ in range(3000)]
    ours = crop_boxes(0.08, of_keys(3000))
    for name in ("height", "width", "top", "left"):
        drawn = np.array([params[name] for params in theirs]) / 1000
        quantiles = np.quantile(drawn, [0.1, 0.3, 0.5, 0.7, 0.9])
        assert np.quantile(getattr(ours, name), [0.1, 0.3, 0.5, 0.7, 0.9]) == pytest.approx(
            quantiles, abs=0.04
        )
    assert (ours.top + ours.height).max() <= 1.0001
    assert (ours.height * ours.width).min() >= 0.0799


def test_erased_rectangles_have_the_distribution_of_torchvision() -> None:
    torch.manual_seed(0)
    reference = v2.RandomErasing(p=1)
    theirs = [reference.make_params([torch.zeros(3, 224, 224)]) for _ in range(3000)]
    ours = erased_boxes(1.0, of_keys(3000), 224)
    for name, key in (("height", "h"), ("width", "w"), ("top", "i"), ("left", "j")):
        drawn = np.array([params[key] for params in theirs])
        quantiles = np.quantile(drawn, [0.1, 0.3, 0.5, 0.7, 0.9])
        assert np.quantile(getattr(ours, name), [0.1, 0.3, 0.5, 0.7, 0.9]) == pytest.approx(
            quantiles, abs=8
        )
    assert (erased_boxes(0.25, of_keys(3000), 224).height > 0).float().mean() == pytest.approx(
        0.25, abs=0.03
    )


def test_erase_is_that_of_torchvision_for_the_same_rectangle(photograph: Tensor) -> None:
    inputs = (photograph[None].float() - 128) / 60
    rng = of_keys(1)
    (top,), (left,), (height,), (width,) = erased_boxes(1.0, rng, 224)
    expected = tv.erase(inputs[0], int(top), int(left), int(height), int(width), torch.zeros(1))
    assert torch.equal(erase(inputs, Augmentation(erase=1.0), rng)[0], expected)
    assert int(height) * int(width) >= 0.015 * 224**2
