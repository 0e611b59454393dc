"""Floating-point arithmetic: 16 bits where a device is fast at them, and float32 without TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch

from afinar.config.base import Precision


def use_bfloat16(precision: Precision | Literal["float16"], device: torch.device) -> bool:
    """Return True if a network is to compute in bfloat16.

    With `auto` it does if the hardware multiplies bfloat16 matrices: GPUs since Ampere (Tensor
    Cores), CPUs with AMX.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported()


def use_float16(precision: Precision | Literal["float16"], device: torch.device) -> bool:
    """Return True if a network may train in float16, with a scaled loss.

    With `auto` it may on GPUs whose Tensor Cores multiply float16 matrices (Volta, Turing, and
    later ones, for which `use_bfloat16` is also true). CPUs emulate float16.
    """
    if precision != "auto":
        return precision == "float16"
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


@contextmanager
def tf32_disabled(device: torch.device) -> Iterator[None]:
    """Run convolutions of float32 tensors in float32 inside this context.

    By default a GPU computes them in TF32, which has 10 bits of mantissa: an error of about 1e-3,
    as much as the golden samples allow. The flag is process-wide, so it is restored at the end. On
    other devices it has no effect and is not touched.
    """
    if device.type != "cuda":
        yield
        return

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[None]:
    """Return a mixed-precision context; it does nothing for float32."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)
