"""Devices that compute nothing: they show what feeding a fast one costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from afinar.inference.device import Device, Handle, Images
from afinar.inference.pipeline import Pipeline
from afinar.inference.predictor import PredictorOutput
from afinar.labelling.worker import Labeller

BATCH: Final = 64
BATCH_S: Final = 0.005
"""Time of a batch on the simulated device: 12,800 pictures a second, as resnet50 on an H200."""


def scores_of(images: Images, classes: int) -> NDArray[np.float32]:
    """Return scores that follow from the pictures, so that mixed-up ones are noticed."""
    levels = images[:, 0, 0, 0].astype(np.float32) / 255
    scores: NDArray[np.float32] = np.repeat((1 - levels[:, None]) / classes, classes, axis=1)
    scores[:, 0] += levels
    return scores


@dataclass(frozen=True)
class _Done:
    output: PredictorOutput
    at_s: float = 0.0

    def result(self) -> PredictorOutput:
        time.sleep(max(0.0, self.at_s - time.perf_counter()))
        return self.output


class NullDevice:
    """A network whose forward pass, and the preparation of its input, cost nothing."""

    batches = 2

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def allocate(self, shape: tuple[int, ...]) -> Images:
        return np.zeros(shape, dtype=np.uint8)

    def submit(self, images: Images) -> Handle[PredictorOutput]:
        return _Done(PredictorOutput(scores_of(images, self._classes), None))


class SimulatedDevice(NullDevice):
    """A device that takes 5 ms for a batch of up to 64 pictures, one batch after the other.

    Its clock is that of the machine: a batch is done 5 ms after it was submitted, or after the one
    before was done. So it needs neither a core nor Python's lock, as a GPU does not.
    """

    batches = 4

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget the batches so far."""
        self.started_s = self.finished_s = self.idle_s = 0.0
        self.pictures = 0

    @property
    def rate(self) -> float:
        """Pictures per second from the first batch to the end of the last one."""
        return self.pictures / (self.finished_s - self.started_s)

    @property
    def idle(self) -> float:
        """Share of that time in which it had nothing to compute."""
        return self.idle_s / (self.finished_s - self.started_s)

    def submit(self, images: Images) -> Handle[PredictorOutput]:
        with self._lock:
            now = time.perf_counter()
            if not self.pictures:
                self.started_s = self.finished_s = now
            self.idle_s += max(0.0, now - self.finished_s)
            self.finished_s = max(now, self.finished_s) + BATCH_S
            self.pictures += len(images)
        return _Done(PredictorOutput(scores_of(images, self._classes), None), self.finished_s)


def with_device(labeller: Labeller, make: Callable[[int], Device[PredictorOutput]]) -> Labeller:
    """Return the labeller with another device, and batches of 64."""
    device = make(len(labeller.predictor.classes))
    size_px = labeller.predictor.version.stored_view.size
    return replace(labeller, pipeline=Pipeline(device, BATCH, size_px))


def make_null_work(make_work: Callable[[], Any]) -> Labeller:
    """Return the work of a process, with the device that costs nothing."""
    return with_device(make_work(), NullDevice)
