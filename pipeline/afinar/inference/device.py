"""Devices that compute batches of pictures: a CPU at once, a GPU while the process goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afinar.inference.predictor import Predictor, PredictorOutput
from afinar.models.networks.precision import tf32_disabled

Images = NDArray[np.uint8]
Arrays = list[NDArray[Any]]
Output = TypeVar("Output")
Output_co = TypeVar("Output_co", covariant=True)

_GPU_BATCHES: Final = 4  # one is copied, one computed, one fetched, one filled by the process


class Handle(Protocol[Output_co]):
    """A submitted batch."""

    def result(self) -> Output_co:
        """Wait for the batch and return its output. Called once, by any thread."""
        ...


class Device(Protocol[Output_co]):
    """Computes batches of pictures in the order in which they are submitted.

    `batches` is the number of batches in memory, submitted or being filled, that keep it busy.
    """

    batches: int

    def allocate(self, shape: tuple[int, ...]) -> Images:
        """Return memory from which batches are submitted."""
        ...

    def submit(self, images: Images) -> Handle[Output_co]:
        """Begin to compute stored views uint8 [n, size, size, 3].

        The memory must not change before the result is fetched. Called by one thread at a time.
        """
        ...


@dataclass(frozen=True)
class _Uncomputed(Generic[Output]):
    """A batch that the thread which asks for its result computes."""

    compute: Callable[[Images], Output]
    images: Images

    def result(self) -> Output:
        return self.compute(self.images)


class CpuDevice(Generic[Output]):
    """The calling process: `compute` is called when the result of a batch is fetched."""

    batches = 1

    def __init__(self, compute: Callable[[Images], Output]) -> None:
        self._compute = compute

    def allocate(self, shape: tuple[int, ...]) -> Images:
        return np.empty(shape, dtype=np.uint8)

    def submit(self, images: Images) -> Handle[Output]:
        return _Uncomputed(self._compute, images)


class CudaDevice(Generic[Output]):
    """A GPU with a stream for copies to it and one for the network.

    While it computes a batch the next one is copied, and no call but `result` waits for it.
    `compute` maps pixels on the GPU to tensors on the GPU, and `finish` those, as arrays of the
    host, to the output.
    """

    batches = _GPU_BATCHES

    def __init__(
        self,
        device: torch.device,
        compute: Callable[[Tensor], Sequence[Tensor]],
        finish: Callable[[Arrays], Output],
    ) -> None:
        self._device, self._compute, self._finish = device, compute, finish
        self._copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._compute_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def allocate(self, shape: tuple[int, ...]) -> Images:
        """Return pinned memory: only from that is a copy asynchronous, and it is five times faster.

        The array keeps the memory alive.
        """
        pinned: Images = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        return pinned

    def submit(self, images: Images) -> Handle[Output]:
        with torch.inference_mode(), tf32_disabled(self._device):
            with torch.cuda.stream(self._copy_stream):
                pixels = torch.from_numpy(images).to(self._device, non_blocking=True)
            self._compute_stream.wait_stream(self._copy_stream)
            with torch.cuda.stream(self._compute_stream):
                # The allocator must not give the memory to the next copy before it was read.
                pixels.record_stream(self._compute_stream)
                fetched = [_to_pinned(tensor) for tensor in self._compute(pixels)]
                # A thread that waits for it sleeps.
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                done.record(self._compute_stream)
        return _OnGpu(fetched, done, self._finish)


def _to_pinned(tensor: Tensor) -> Tensor:
    """Begin to copy a tensor to host memory."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


@dataclass(frozen=True)
class _OnGpu(Generic[Output]):
    """A batch whose tensors are copied to the host before the event `done`."""

    fetched: list[Tensor]
    done: torch.cuda.Event
    finish: Callable[[Arrays], Output]

    def result(self) -> Output:
        self.done.synchronize()
        # Copies: pinned memory is scarce, and goes back to the next batches.
        return self.finish([tensor.numpy().copy() for tensor in self.fetched])


def device_for(predictor: Predictor, *, features: bool = False) -> Device[PredictorOutput]:
    """Return the device that a predictor's network is on; `features` are fetched if wanted."""
    if predictor.device.type != "cuda":
        return CpuDevice(partial(predictor.outputs, features=features))

    def compute(pixels: Tensor) -> list[Tensor]:
        scores, activations = predictor.compute(pixels)
        return [scores, activations.float()] if features else [scores]

    def finish(arrays: Arrays) -> PredictorOutput:
        return PredictorOutput(arrays[0], arrays[1] if features else None)

    return CudaDevice(predictor.device, compute, finish)
