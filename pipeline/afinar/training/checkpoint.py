"""Checkpoints of a run, from which a training resumes on any machine, with any number of workers.

    runs/<run>/checkpoints/00000014.json               written last; names the two objects below
    runs/<run>/checkpoints/<hash>.safetensors          weights
    runs/<run>/checkpoints/<hash>.safetensors          state of the optimizer

The highest step is current. A new checkpoint deletes the objects that it does not need.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

import safetensors.torch
from torch import Tensor

from afinar.errors import IntegrityError, ShortfallError
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.store import Store
from afinar.storage.versions import latest, versions

FORMAT: Final = "afinar-checkpoint/1"
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class RankedEpoch:
    """An epoch with its metrics on validation. Only rank 0 knows the object of its `weights`."""

    epoch: int
    top1: float
    loss: float
    weights: ObjectRef | None

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sort key, best first: higher accuracy, then lower loss, then earlier epoch."""
        return -self.top1, self.loss, self.epoch


@dataclass(kw_only=True)
class TrainState:
    """Progress of a training; JSON-able.

    `batch` batches of `epoch` (both from 0) are done, `step` steps since the beginning. `sums` are
    the loss and the correct predictions of the current epoch, summed over samples. `history` has a
    row per epoch. `best` lists the best epochs so far, best first.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    history: list[dict[str, Any]] = field(default_factory=list)
    best: list[RankedEpoch] = field(default_factory=list)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> TrainState:
        """Read the `cursor` of a checkpoint."""
        best = [
            RankedEpoch(**{**entry, "weights": ObjectRef(**entry["weights"])})
            for entry in record["best"]
        ]
        return cls(**{**record, "best": best})


class Checkpoint(NamedTuple):
    """A checkpoint as read back: `weights` of the evaluated model, `optimizer` state tensors."""

    state: TrainState
    weights: Tensors
    optimizer: Tensors


def has_checkpoint(store: Store, run: str) -> bool:
    """Return True if the run has a checkpoint from which it would resume."""
    return bool(versions(store, f"runs/{run}/checkpoints"))


class Checkpoints:
    """The checkpoints of one run. `fingerprint` identifies the training that they belong to."""

    def __init__(self, store: Store, run: str, fingerprint: str) -> None:
        self._store, self._folder, self._fingerprint = store, f"runs/{run}/checkpoints", fingerprint

    def save(self, state: TrainState, weights: ObjectRef, optimizer: Tensors) -> None:
        """Write a checkpoint, then delete the objects that neither it nor the best epochs need."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "cursor": asdict(state),
            "weights": weights.as_dict(),
            "state": self.put(optimizer).as_dict(),
        }
        name = f"{self._folder}/{state.step:08d}.json"
        if not self._store.put_if_absent(name, json.dumps(record, indent=1).encode()):
            # A concurrent duplicate of this run wrote the checkpoint; its objects are the ones to
            # keep.
            record = json.loads(self._store.get(name))

        # A duplicate run that is ahead needs objects that are unknown here: delete none.
        if versions(self._store, self._folder)[-1] > state.step:
            return
        best = [*state.best, *TrainState.from_dict(record["cursor"]).best]
        self.delete_except(
            {name, record["weights"]["path"], record["state"]["path"]}
            | {epoch.weights.path for epoch in best if epoch.weights}
        )

    def put(self, tensors: Tensors) -> ObjectRef:
        """Write tensors as an object named by its content."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(plain)
        return put_object(self._store, f"{self._folder}/{{hash}}.safetensors", data, len(plain))

    def get(self, ref: ObjectRef) -> Tensors:
        """Read tensors and verify their hash."""
        return safetensors.torch.load(get_object(self._store, ref))

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, None if there is none.

        Raises ShortfallError if it belongs to another training, IntegrityError if it is damaged.
        """
        version = latest(self._store, self._folder)
        if version is None:
            return None

        step, record = version
        uri = self._store.uri(f"{self._folder}/{step:08d}.json")
        if record.get("format") != FORMAT:
            raise IntegrityError(
                f"{uri} is no checkpoint of this version of afinar: remove {self._folder} to begin "
                "anew"
            )
        if record["fingerprint"] != self._fingerprint:
            raise ShortfallError(
                f"{uri} is a checkpoint of another training (another dataset version, "
                f"configuration or initial weights): remove {self._folder} to begin anew"
            )
        return Checkpoint(
            TrainState.from_dict(record["cursor"]),
            self.get(ObjectRef(**record["weights"])),
            self.get(ObjectRef(**record["state"])),
        )

    def delete_except(self, needed: set[str]) -> None:
        """Delete all objects of the run's checkpoints whose path is not in `needed`."""
        for info in list(self._store.walk(self._folder)):
            if info.name not in needed:
                self._store.delete(info.name)
