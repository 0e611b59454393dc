"""Where the time of an epoch went, and what limited it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch

Stage = Literal["waiting", "copy", "augment", "prepare", "compute", "checkpoint"]
_WORTH_SAYING: Final = 0.03


class EpochTimer:
    """Seconds by stage. On a GPU they are the GPU's own, taken by events, so that measuring does not stop it.

    There `waiting` is what the GPU stood still for: a reader that is slow while it computes costs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"
        self._seconds: dict[Stage, float] = defaultdict(float)
        self._pairs: list[tuple[Stage, torch.cuda.Event, torch.cuda.Event]] = []
        self._started = time.perf_counter()
        self._first_batch_s: float | None = None
        self._steps = 0

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Count the block's time towards `stage`; stages do not nest."""
        if self._events and stage != "checkpoint":
            begun, ended = _event(), _event()
            begun.record()
            yield
            ended.record()
            self._pairs.append((stage, begun, ended))
            return
        begun_s = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - begun_s

    def batch_arrived(self) -> None:
        """Count a step."""
        if self._first_batch_s is None:
            self._first_batch_s = time.perf_counter() - self._started
        self._steps += 1

    def close(self) -> Account:
        """The account of everything measured; waits for the GPU."""
        if self._events:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._started
        for stage, begun, ended in self._pairs:
            self._seconds[stage] += begun.elapsed_time(ended) / 1000
        self._pairs.clear()
        stages: tuple[Stage, ...] = ("waiting", "copy", "augment", "prepare", "compute")
        spent = {f"{stage}_s": round(self._seconds[stage], 4) for stage in stages}
        seconds -= self._seconds["checkpoint"]
        first = round(self._first_batch_s or 0.0, 4)
        return Account(first_batch_s=first, **spent, seconds=round(seconds, 4), steps=self._steps)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class Account:
    """One epoch's training, apart from its validation and checkpoints. `waiting_s` includes the first batch."""

    first_batch_s: float
    waiting_s: float
    copy_s: float
    augment_s: float
    prepare_s: float
    compute_s: float
    seconds: float
    steps: int

    @property
    def limit(self) -> str:
        """One sentence on what limited the epoch."""
        whole = max(self.seconds, 1e-9)
        shares = {
            "Waiting for data": self.waiting_s,
            "Copying to the device": self.copy_s,
            "Augmentation": self.augment_s,
            "Resizing and normalising": self.prepare_s,
        }
        name, most = max(shares.items(), key=lambda one: one[1])
        if most / whole <= _WORTH_SAYING:
            return f"The network's own arithmetic is the limit ({self.compute_s / whole:.0%} of the time)."
        verb = "is the limit" if most > self.compute_s else "slows it"
        return f"{name} {verb}: {most / whole:.0%} of the time, arithmetic {self.compute_s / whole:.0%}."

    def as_dict(self) -> dict[str, Any]:
        """JSON form, with the sentence."""
        return {**asdict(self), "limit": self.limit}
