"""Which samples made which step, as each worker saw it: proof that every one of them counted once."""

from __future__ import annotations

import json
import os
from pathlib import Path

from afinar.training.checkpoint import TrainState
from afinar.training.distributed import Group
from afinar.training.sampler import Rows


class SampleLog:
    """Appends a JSON line per step to a file of this process's own; writes nothing without a folder."""

    def __init__(self, folder: str, run: str, group: Group) -> None:
        self._group = group
        self._path = Path(folder, f"{run}-{group.rank}-{os.getpid()}.jsonl") if folder else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, cursor: TrainState, rows: Rows) -> None:
        """A step that has been taken, and the dataset rows of this worker's share of it."""
        if self._path is None:
            return
        line = {
            "epoch": cursor.epoch,
            "step": cursor.step,
            "rank": self._group.rank,
            "workers": self._group.size,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "rows": rows.tolist()}) + "\n")
