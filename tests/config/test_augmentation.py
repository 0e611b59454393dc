"""Parsing of `--augment`."""

from __future__ import annotations

import pytest

from afinar.config.augmentation import Augmentation, parse_augment
from afinar.errors import RequestError


@pytest.mark.parametrize(
    "spec",
    [
        "turn:40",
        "rotate",
        "rotate:400",
        "flip:1",
        "zoom:-0.1",
        "rotate:40,,flip",
        "zoom:x",
        "trivial:3",
        "crop:1.5",
        "erase",
        "mixup:0",
    ],
)
def test_wrong_augmentation_is_refused(spec: str) -> None:
    with pytest.raises(RequestError, match="--augment"):
        parse_augment(spec, "full")


def test_auto_flips_unless_the_regime_is_frozen() -> None:
    assert parse_augment("auto", "full") == Augmentation(flip=True)
    assert not parse_augment("auto", "frozen").any
    assert not parse_augment("none", "full").any


def test_parts_become_fields() -> None:
    assert parse_augment("rotate:40, flip-vertical", "full") == Augmentation(
        rotate=40.0, flip_vertical=True
    )


def test_mixed_pictures_and_a_frozen_backbone_are_refused() -> None:
    for spec in ("mixup:0.2", "flip,cutmix:1"):
        with pytest.raises(RequestError, match="leave out mixup and cutmix"):
            parse_augment(spec, "frozen")
        assert parse_augment(spec, "last:1").mixes
    assert not parse_augment("crop:0.3,trivial,erase:0.5", "frozen").mixes
