"""Log of the samples of every step: evidence that each sample was used once per epoch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from afinar.storage.files import translate_errors
from afinar.training.checkpoint import TrainState
from afinar.training.distributed import Group
from afinar.training.sampler import RowNumbers


class SampleLog:
    """Appends a JSON line per step to a file of this process in `folder`; disabled if empty."""

    def __init__(self, folder: str, run: str, group: Group) -> None:
        self._group = group
        self._path = Path(folder, f"{run}-{group.rank}-{os.getpid()}.jsonl") if folder else None

    def write(self, state: TrainState, rows: RowNumbers) -> None:
        """Append a finished step with the dataset rows that this worker used in it."""
        if self._path is None:
            return

        line = {
            "epoch": state.epoch,
            "step": state.step,
            "rank": self._group.rank,
            "workers": self._group.size,
            "rows": rows.tolist(),
        }
        with translate_errors(str(self._path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
