"""Checkpoints written while the training goes on, and when they are due."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import torch

from afinar.storage.objects import ObjectRef
from afinar.training.checkpoint import Checkpoints, RankedEpoch, Tensors, TrainState

logger = logging.getLogger(__name__)

_AGREEMENT_S: Final = 5.0
_MAX_STEPS: Final = 20


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time. A context manager; only rank 0 saves.

    `save` copies the tensors to host memory, which the next steps change, and returns. Serialising,
    hashing and storing them follows in the thread. An error of the thread is raised by the next
    `save` or `wait`, or at the end of the block, which waits for the thread in any case.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._write_in_flight: Future[None] | None = None
        self._weights_by_epoch: dict[int, ObjectRef] = {}

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()
        elif self._write_in_flight is not None and (failure := self._write_in_flight.exception()):
            logger.debug(f"the last checkpoint was not written: {failure}")

    def save(self, state: TrainState, weights: Tensors, optimizer: Tensors, fixed: str) -> None:
        """Write a checkpoint, after the one in flight. `fixed`: see `Checkpoint`."""
        self.wait()
        self._write_in_flight = self._thread.submit(
            self._write, copy.deepcopy(state), _to_host(weights), _to_host(optimizer), fixed
        )

    def wait(self) -> None:
        """Wait for the checkpoint in flight. Raises the error that its write raised."""
        write, self._write_in_flight = self._write_in_flight, None
        if write is not None:
            write.result()

    def with_weights(self, epochs: list[RankedEpoch]) -> list[RankedEpoch]:
        """Return the epochs with the objects of their weights, as far as they are written."""
        return [
            replace(epoch, weights=epoch.weights or self._weights_by_epoch.get(epoch.epoch))
            for epoch in epochs
        ]

    def _write(self, state: TrainState, weights: Tensors, optimizer: Tensors, fixed: str) -> None:
        ref = self._checkpoints.put(weights)
        if state.batch == 0:  # at the end of an epoch
            self._weights_by_epoch[state.epoch] = ref
        state.best = self.with_weights(state.best)
        self._checkpoints.save(state, ref, optimizer, fixed)


def _to_host(tensors: Tensors) -> Tensors:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.preserve_format)
        for name, tensor in tensors.items()
    }


class CheckpointSchedule:
    """Decides on rank 0 when a checkpoint is due by time or by a notice of preemption.

    The other workers have other clocks, so they learn the decision in a collective operation, at
    steps that all know: `next_step` is agreed on at the one before. It is at most 20 steps ahead
    and, at the pace so far, at most 5 s.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s, self._clock = 60 * minutes, clock
        self._saved_at = self._agreed_at = clock()
        self._agreed_step: int | None = None
        self.is_preempted = False
        self.next_step = 0

    def is_due(self, is_preempted: bool) -> bool:
        """Return True if the interval is over, or at the first call with a notice."""
        is_new_notice = is_preempted and not self.is_preempted
        self.is_preempted = is_preempted
        is_late = bool(self._interval_s) and self._clock() - self._saved_at >= self._interval_s
        return is_new_notice or is_late

    def saved(self) -> None:
        """Begin a new interval."""
        self._saved_at = self._clock()

    def steps_ahead(self, step: int) -> int:
        """Return after how many steps the workers should agree again, at `step`."""
        now = self._clock()
        seconds, self._agreed_at = now - self._agreed_at, now
        before, self._agreed_step = self._agreed_step, step
        if before is None or step <= before:  # the pace is unknown
            return 1
        step_s = max(seconds / (step - before), 1e-9)
        return max(1, min(_MAX_STEPS, int(_AGREEMENT_S / step_s)))
