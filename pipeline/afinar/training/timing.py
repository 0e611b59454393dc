"""Seconds of an epoch by phase, and the phase that limits its speed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

Phase = Literal["data_wait", "copy", "augment", "prepare", "compute", "checkpoint"]

_NEGLIGIBLE_SHARE: Final = 0.03


class EpochTimer:
    """Adds up seconds by phase.

    On a GPU the seconds come from CUDA events, so measuring does not synchronize the device. There
    `data_wait` is the time in which the GPU was idle: loading that overlaps with computing costs
    nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._uses_events = device.type == "cuda"
        self._seconds: dict[Phase, float] = defaultdict(float)
        self._events: list[tuple[Phase, torch.cuda.Event, torch.cuda.Event]] = []
        self._started = time.perf_counter()
        self._first_batch_s: float | None = None
        self._steps = 0

    @contextmanager
    def measure(self, phase: Phase) -> Iterator[None]:
        """Add the duration of the block to `phase`. Phases must not nest."""
        # A checkpoint waits for the store, not for the GPU: the host clock measures it.
        if self._uses_events and phase != "checkpoint":
            start, end = _event(), _event()
            start.record()
            yield
            end.record()
            self._events.append((phase, start, end))
            return

        started = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - started

    def batch_arrived(self) -> None:
        """Count a step."""
        if self._first_batch_s is None:
            self._first_batch_s = time.perf_counter() - self._started
        self._steps += 1

    def close(self) -> EpochTimings:
        """Return the totals. Synchronizes the GPU."""
        if self._uses_events:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._started

        for phase, start, end in self._events:
            self._seconds[phase] += start.elapsed_time(end) / 1000
        self._events.clear()

        return EpochTimings(
            first_batch_s=round(self._first_batch_s or 0.0, 4),
            data_wait_s=round(self._seconds["data_wait"], 4),
            copy_s=round(self._seconds["copy"], 4),
            augment_s=round(self._seconds["augment"], 4),
            prepare_s=round(self._seconds["prepare"], 4),
            compute_s=round(self._seconds["compute"], 4),
            seconds=round(seconds - self._seconds["checkpoint"], 4),
            steps=self._steps,
        )


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class EpochTimings:
    """Seconds of the training steps of one epoch, without validation and checkpoints.

    `data_wait_s` includes `first_batch_s`, the wait for the first batch.
    """

    first_batch_s: float
    data_wait_s: float
    copy_s: float
    augment_s: float
    prepare_s: float
    compute_s: float
    seconds: float
    steps: int

    @property
    def limit(self) -> str:
        """One sentence on the phase that limits the speed of the epoch; "" if it has no steps."""
        if not self.steps:
            return ""
        total = max(self.seconds, 1e-9)
        overheads = {
            "Waiting for data": self.data_wait_s,
            "Copying to the device": self.copy_s,
            "Augmentation": self.augment_s,
            "Resizing and normalising": self.prepare_s,
        }

        name, seconds = max(overheads.items(), key=lambda item: item[1])
        compute = f"{self.compute_s / total:.0%}"
        if seconds / total <= _NEGLIGIBLE_SHARE:
            return f"The arithmetic of the network is the limit: {compute} of the epoch."
        verb = "is the limit" if seconds > self.compute_s else "slows it"
        return f"{name} {verb}: {seconds / total:.0%} of the epoch, arithmetic {compute}."

    def as_dict(self) -> dict[str, Any]:
        """Return the `ledger` of a row of history.jsonl."""
        return {
            "first_batch_s": self.first_batch_s,
            "waiting_s": self.data_wait_s,
            "copy_s": self.copy_s,
            "augment_s": self.augment_s,
            "prepare_s": self.prepare_s,
            "compute_s": self.compute_s,
            "seconds": self.seconds,
            "steps": self.steps,
            "limit": self.limit,
        }
