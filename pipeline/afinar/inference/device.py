"""Devices that compute batches of pictures: a CPU at once, a GPU while the process goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afinar.inference.predictor import Predictor, PredictorOutput
from afinar.models.networks.precision import tf32_disabled

Images = NDArray[np.uint8]

_GPU_BATCHES: Final = 4  # one is copied, one computed, one fetched, one filled by the process


class Handle(Protocol):
    """A submitted batch."""

    def result(self) -> PredictorOutput:
        """Wait for the batch and return its scores and features. Called once, by any thread."""
        ...


class Device(Protocol):
    """Computes batches of pictures in the order in which they are submitted.

    `batches` is the number of batches in memory, submitted or being filled, that keep it busy.
    """

    batches: int

    def allocate(self, shape: tuple[int, ...]) -> Images:
        """Return memory from which batches are submitted."""
        ...

    def submit(self, images: Images) -> Handle:
        """Begin to compute stored views uint8 [n, size, size, 3].

        The memory must not change before the result is fetched. Called by one thread at a time.
        """
        ...


@dataclass(frozen=True)
class _Uncomputed:
    """A batch that the thread which asks for its result computes."""

    predictor: Predictor
    images: Images
    features: bool

    def result(self) -> PredictorOutput:
        return self.predictor.outputs(self.images, self.features)


class CpuDevice:
    """The calling process: a batch is computed when its result is fetched."""

    batches = 1

    def __init__(self, predictor: Predictor, *, features: bool = False) -> None:
        self._predictor, self._features = predictor, features

    def allocate(self, shape: tuple[int, ...]) -> Images:
        return np.empty(shape, dtype=np.uint8)

    def submit(self, images: Images) -> Handle:
        return _Uncomputed(self._predictor, images, self._features)


class CudaDevice:
    """A GPU with a stream for copies to it and one for the network.

    While it computes a batch the next one is copied, and no call but `result` waits for it.
    """

    batches = _GPU_BATCHES

    def __init__(self, predictor: Predictor, *, features: bool = False) -> None:
        self._predictor, self._features = predictor, features
        self._copies = torch.cuda.Stream(predictor.device)  # type: ignore[no-untyped-call]
        self._compute = torch.cuda.Stream(predictor.device)  # type: ignore[no-untyped-call]

    def allocate(self, shape: tuple[int, ...]) -> Images:
        """Return pinned memory: only from that is a copy asynchronous, and it is five times faster.

        The array keeps the memory alive.
        """
        pinned: Images = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        return pinned

    def submit(self, images: Images) -> Handle:
        predictor = self._predictor
        with torch.inference_mode(), tf32_disabled(predictor.device):
            with torch.cuda.stream(self._copies):
                pixels = torch.from_numpy(images).to(predictor.device, non_blocking=True)
            self._compute.wait_stream(self._copies)
            with torch.cuda.stream(self._compute):
                # The allocator must not give the memory to the next copy before it was read.
                pixels.record_stream(self._compute)
                scores, features = predictor.compute(pixels)
                fetched = _to_pinned(scores)
                rows = _to_pinned(features) if self._features else None
                # A thread that waits for it sleeps.
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                done.record(self._compute)
        return _OnGpu(fetched, rows, done)


def _to_pinned(tensor: Tensor) -> Tensor:
    """Begin to copy a tensor to host memory."""
    host = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


@dataclass(frozen=True)
class _OnGpu:
    """A batch whose scores and features are copied to the host before the event `done`."""

    scores: Tensor
    features: Tensor | None
    done: torch.cuda.Event

    def result(self) -> PredictorOutput:
        self.done.synchronize()
        # Copies: pinned memory is scarce, and goes back to the next batches.
        features = None if self.features is None else self.features.numpy().copy()
        return PredictorOutput(self.scores.numpy().copy(), features)


def device_for(predictor: Predictor, *, features: bool = False) -> Device:
    """Return the device that a predictor's network is on; `features` are fetched if wanted."""
    if predictor.device.type == "cuda":
        return CudaDevice(predictor, features=features)
    return CpuDevice(predictor, features=features)
