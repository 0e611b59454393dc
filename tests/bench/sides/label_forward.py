"""Rate of a model's forward pass alone, on normalized pictures that are on its device."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import nn

from afinar.inference.predictor import load_predictor
from afinar.models.registry.versions import find_model
from tests.bench.sides.train_steps import device_name


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Return pictures per second with the fastest of `request["batches"]`.

    The network is the one that labelling optimizes.
    """
    device = torch.device(request["device"])
    torch.backends.cudnn.allow_tf32 = False  # as in labelling
    predictor = load_predictor(
        *find_model(request["model"]), device=request["device"], precision="auto"
    )
    size = predictor.version.input_view.input_size
    rates = [
        _rate(predictor.network, batch, size, device, request["seconds"])
        for batch in request["batches"]
    ]
    dtype = str(next(predictor.network.parameters()).dtype).removeprefix("torch.")
    return {"rate": max(rates), "device": device_name(device), "dtype": dtype}


def _rate(network: nn.Module, batch: int, size: int, device: torch.device, seconds: float) -> float:
    dtype = next(network.parameters()).dtype
    images = torch.rand(batch, 3, size, size, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    with torch.inference_mode():
        for _ in range(3):
            network(images)
        _synchronize(device)
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            network(images)
            _synchronize(device)
            done += batch
        return done / (time.perf_counter() - started)


def _synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
