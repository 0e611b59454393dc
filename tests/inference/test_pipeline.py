"""The pipeline in front of a device: units overlap, buffers are not overwritten, errors end it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from afinar.inference.device import CpuDevice, Handle, Images
from afinar.inference.pipeline import Pipeline
from afinar.inference.predictor import PredictorOutput


@dataclass
class _Late:
    """A batch that is computed from the buffer when `allowed` is set."""

    images: Images
    allowed: threading.Event

    def result(self) -> PredictorOutput:
        assert self.allowed.wait(10)
        return PredictorOutput(self.images[:, 0, 0, :].astype(np.float32), None)


@dataclass
class LateDevice:
    """A device that finishes no batch before it is allowed to."""

    batches: int = 2
    allowed: threading.Event = field(default_factory=threading.Event)
    submitted: list[int] = field(default_factory=list)

    def allocate(self, shape: tuple[int, ...]) -> Images:
        return np.zeros(shape, np.uint8)

    def submit(self, images: Images) -> Handle[PredictorOutput]:
        self.submitted.append(int(images[0, 0, 0, 0]))
        return _Late(images, self.allowed)


def filler(level: int, count: int = 1) -> Callable[[Images], int]:
    def fill(images: Images) -> int:
        images[:count] = level
        return count

    return fill


def run_unit(pipeline: Pipeline[PredictorOutput], levels: Sequence[int]) -> list[float]:
    """Submit a batch for each level, and return what the device read of each."""
    with pipeline.filling():
        batches = [pipeline.submit(filler(level)) for level in levels]
    return [float(batch.result().scores[0, 0]) for batch in batches if batch is not None]


def test_next_unit_is_submitted_before_the_device_has_finished_one() -> None:
    device = LateDevice()
    pipeline = Pipeline(device, 1, 4)
    with ThreadPoolExecutor(2) as pool:
        units = [pool.submit(run_unit, pipeline, [level]) for level in (1, 2)]
        while len(device.submitted) < 2:
            threading.Event().wait(0.005)
        assert not any(unit.done() for unit in units)
        device.allowed.set()
        assert sorted(unit.result()[0] for unit in units) == [1, 2]


def test_buffer_is_filled_again_only_after_its_result_is_fetched() -> None:
    device = LateDevice()
    pipeline = Pipeline(device, 1, 4)
    with ThreadPoolExecutor(3) as pool:
        units = [pool.submit(run_unit, pipeline, [level]) for level in (1, 2, 3)]
        while len(device.submitted) < 2:
            threading.Event().wait(0.005)
        threading.Event().wait(0.05)
        assert len(device.submitted) == 2, "the third unit waits for a buffer"
        device.allowed.set()
        assert sorted(unit.result()[0] for unit in units) == [1, 2, 3]


def test_no_picture_is_left_nothing_is_submitted() -> None:
    device = LateDevice()
    pipeline = Pipeline(device, 2, 4)
    assert pipeline.submit(filler(1, 0)) is None
    assert device.submitted == []


def test_reading_fails_its_buffer_is_free_again() -> None:
    device = LateDevice(batches=1)
    device.allowed.set()
    pipeline = Pipeline(device, 1, 4)

    def fail(images: Images) -> int:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        pipeline.submit(fail)
    assert run_unit(pipeline, [7]) == [7]


def test_cpu_computes_in_the_thread_that_asks() -> None:
    def double(images: Images) -> PredictorOutput:
        return PredictorOutput(2.0 * images[:, 0, 0, :].astype(np.float32), None)

    pipeline = Pipeline(CpuDevice(double), 4, 4)
    with pipeline.filling():
        batch = pipeline.submit(filler(5, 3))
    assert batch is not None
    assert batch.result().scores[:, 0].tolist() == [10, 10, 10]
