"""Batches of several units on one device: filled, computed and fetched at the same time.

One unit at a time fills batches. As soon as it has submitted its last one, the next unit fills
batches, while the first fetches its results. So the device does not wait between two units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Generic

from afinar.inference.device import Device, Handle, Images, Output


@dataclass(frozen=True)
class SubmittedBatch(Generic[Output]):
    """A batch on the device, and the buffer that is free again when its result is fetched."""

    handle: Handle[Output]
    buffer: Images
    free: SimpleQueue[Images]

    def result(self) -> Output:
        """Wait for the batch and return its output."""
        try:
            return self.handle.result()
        finally:
            self.free.put(self.buffer)

    def discard(self) -> None:
        """Wait until the device no longer reads the buffer. For a unit that has failed."""
        with suppress(Exception):  # the unit's own error is raised
            self.result()


class Pipeline(Generic[Output]):
    """A ring of buffers of `batch_size` pictures in front of a device. Used by several threads."""

    def __init__(self, device: Device[Output], batch_size: int, size_px: int) -> None:
        self.device, self.batch_size = device, batch_size
        self._filling = Lock()
        self._free: SimpleQueue[Images] = SimpleQueue()
        for _ in range(device.batches):
            self._free.put(device.allocate((batch_size, size_px, size_px, 3)))

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Hold the right to submit. One thread has it at a time, others wait.

        The thread must fetch a result before it submits more than `device.batches` batches.
        """
        with self._filling:
            yield

    def submit(self, fill: Callable[[Images], int]) -> SubmittedBatch[Output] | None:
        """Let `fill` copy pictures into a buffer and return their number; submit them.

        Waits for a free buffer. Returns None if there are no pictures.
        """
        buffer = self._free.get()
        try:
            count = fill(buffer)
            if count:
                return SubmittedBatch(self.device.submit(buffer[:count]), buffer, self._free)
        except BaseException:
            self._free.put(buffer)
            raise
        self._free.put(buffer)
        return None
