"""Embedded ICC profiles: conversion of pixels to sRGB with LittleCMS.

Cameras, phones and editors write Display P3, Adobe RGB and ProPhoto RGB. Read as sRGB, their
colours are too pale. The intent is perceptual with black point compensation, as in Pillow's default
and in Firefox; for profiles of a matrix and curves all intents are the same.

Profiles come from strangers. One that is larger than 4 MiB, does not belong to the picture's
channels, or that LittleCMS refuses, is ignored: the pixels are whole, and are read as sRGB.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms, features

from afinar.errors import RequestError

MAX_PROFILE_BYTES: Final = 4 << 20  # the largest common ones, of printing presses, have 3 MB
_HEADER_BYTES: Final = 128
_MODES: Final = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # colour space: Pillow's mode
_GREY_MODES: Final = {"1", "L", "LA", "La", "F"}  # and I, I;16, ...
# Profiles that move no colour by more than this many levels of 255 are sRGB: many files carry one
# of a dozen variants of it, which differ in the rounding of their curves.
_SAME_LEVELS: Final = 1
_CACHED: Final = 32  # 128 MB at worst, if all profiles are of the largest size


@dataclass(frozen=True)
class ProfileConversion:
    """Conversion of pictures of one mode (RGB, L or CMYK) from their profile to sRGB."""

    mode: str
    transform: ImageCms.ImageCmsTransform

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the picture as sRGB, mode RGB; transparency is dropped."""
        source = image if image.mode == self.mode else image.convert(self.mode)
        result = ImageCms.applyTransform(source, self.transform)
        assert result is not None  # it is None only if the conversion is in place
        return result


def require_colour_management() -> None:
    """Raise RequestError if Pillow was built without LittleCMS: pixels would be silently others."""
    if not features.check("littlecms2"):
        raise RequestError(
            "this Pillow was built without LittleCMS, which converts embedded colour profiles: "
            "install Pillow's wheel (pip install --force-reinstall pillow)"
        )


def find_conversion(image: Image.Image) -> ProfileConversion | None:
    """Return the conversion of a picture's embedded profile; None if it has none or is sRGB."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not _HEADER_BYTES <= len(profile) <= MAX_PROFILE_BYTES:
        return None
    mode = _MODES.get(profile[16:20])
    is_grey = image.mode in _GREY_MODES or image.mode.startswith("I")
    # An RGB profile in a grey picture is common: its curve applies.
    fits = {"RGB": image.mode not in {"CMYK", "LAB"}, "L": is_grey, "CMYK": image.mode == "CMYK"}
    if mode is None or not fits[mode]:
        return None
    return _conversion_of(profile, mode)


@lru_cache(maxsize=_CACHED)
def _conversion_of(profile: bytes, mode: str) -> ProfileConversion | None:
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    conversion = ProfileConversion(mode, transform)
    return None if _is_identity(conversion) else conversion


def _is_identity(conversion: ProfileConversion) -> bool:
    """Return True if no colour of a grid of 16 x 16 x 16 changes visibly."""
    if conversion.mode == "CMYK":
        return False
    if conversion.mode == "L":
        probe = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        steps = np.arange(0, 256, 17, dtype=np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
        probe = Image.fromarray(grid.reshape(1, -1, 3))
    before = np.asarray(probe.convert("RGB")).astype(np.int16)
    change = np.abs(np.asarray(conversion.apply(probe)) - before)
    return int(change.max()) <= _SAME_LEVELS
