"""Checkpoints: where a training stands, so that it goes on from there wherever and with however many workers.

`<run>/checkpoints/<step>.json` is written last and names the tensors; the highest step is current. What no
later checkpoint needs is removed once it is written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import safetensors.torch
from torch import Tensor

from afinar.errors import IntegrityError, ShortfallError
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.store import Store
from afinar.storage.versions import latest, versions

FORMAT: Final = "afinar-checkpoint/1"
Tensors = dict[str, Tensor]


@dataclass(kw_only=True)
class TrainState:
    """Position and score of a training; JSON-able.

    `batch` batches of `epoch` (both from 0) are done, `step` steps in all; `sums` are those of the epoch begun.
    `best` holds the best epochs so far, the best first: epoch, key, and the object of their weights.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    history: list[dict[str, Any]] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run. `fingerprint` says what the training is of: another's are refused."""

    def __init__(self, store: Store, run: str, fingerprint: str) -> None:
        self._store, self._folder, self._fingerprint = store, f"runs/{run}/checkpoints", fingerprint

    def save(self, cursor: TrainState, weights: ObjectRef, state: Tensors) -> None:
        """Commit a checkpoint, then remove what it supersedes."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "cursor": asdict(cursor),
            "weights": weights.as_dict(),
            "state": self.put(state).as_dict(),
        }
        name = f"{self._folder}/{cursor.step:08d}.json"
        if not self._store.put_if_absent(name, json.dumps(record, indent=1).encode()):
            record = json.loads(self._store.get(name))  # a twin's, which then stands
        if versions(self._store, self._folder)[-1] > cursor.step:
            return  # another job runs this very training, and is ahead: what it left is not for us to remove
        needed = {name, *(record[kind]["path"] for kind in ("weights", "state"))}
        self._sweep(
            needed | {one["weights"]["path"] for one in (*cursor.best, *record["cursor"]["best"])}
        )

    def put(self, tensors: Tensors) -> ObjectRef:
        """Write tensors, named by their content."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(plain)
        return put_object(self._store, f"{self._folder}/{{hash}}.safetensors", data, len(plain))

    def get(self, ref: dict[str, Any]) -> Tensors:
        """Read tensors back, verified."""
        return safetensors.torch.load(get_object(self._store, ObjectRef(**ref)))

    def newest(self) -> tuple[TrainState, Tensors, Tensors] | None:
        """Cursor, weights and state of the newest checkpoint; None before the first.

        Raises ShortfallError for a checkpoint of another training, IntegrityError for a damaged one.
        """
        found = latest(self._store, self._folder)
        if found is None:
            return None
        step, record = found
        where = self._store.uri(f"{self._folder}/{step:08d}.json")
        if record.get("format") != FORMAT:
            raise IntegrityError(
                f"{where} is no checkpoint of this version of afinar: remove {self._folder} to begin anew"
            )
        if record["fingerprint"] != self._fingerprint:
            raise ShortfallError(
                f"{where} is a checkpoint of another training (another dataset version, configuration or "
                f"initial weights): remove {self._folder} to begin anew"
            )
        return (
            TrainState(**record["cursor"]),
            self.get(record["weights"]),
            self.get(record["state"]),
        )

    def _sweep(self, needed: set[str]) -> None:
        for info in list(self._store.walk(self._folder)):
            if info.name not in needed:
                self._store.delete(info.name)

    def drop(self, best: list[dict[str, Any]]) -> None:
        """Remove all but the weights of the best epochs, which the run keeps."""
        self._sweep({one["path"] for one in best})
