"""Which arithmetic a device is fast at."""

from __future__ import annotations

import torch

from afinar.config.jobs import Precision


def use_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether to compute in bfloat16; `auto` does where the hardware multiplies it: Tensor Cores since Ampere, AMX."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported()
