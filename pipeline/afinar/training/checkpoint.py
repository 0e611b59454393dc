"""Checkpoints of a run, from which a training resumes on any machine, with any number of workers.

    runs/<run>/checkpoints/00000014.json               written last; names the two objects below
    runs/<run>/checkpoints/<hash>.safetensors          weights that the training changes
    runs/<run>/checkpoints/<hash>.safetensors          state of the optimizer

The highest step is current. A new checkpoint deletes the objects that it does not need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final, NamedTuple, Self, TypedDict

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from afinar.config.strict import Count, conforms_to
from afinar.config.train import SelectBy
from afinar.errors import RecordError, ShortfallError
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.records import as_record, read_record
from afinar.storage.store import Store
from afinar.storage.versions import latest, record_name, versions

FORMAT: Final = "afinar-checkpoint/2"
_READABLE: Final = ("afinar-checkpoint/1", FORMAT)  # 1 has the fixed tensors among the weights
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class RankedEpoch:
    """An epoch with its metrics on validation. `weights` is None until its checkpoint is written.

    Only rank 0 knows the objects of epochs since the workers started.
    """

    epoch: Count
    top1: float
    loss: float
    weights: ObjectRef | None
    macro_f1: float = 0.0  # of records that were written before it was added

    @classmethod
    def of(cls, epoch: int, validation: Mapping[str, Any]) -> Self:
        """Return an epoch with the metrics of `Metrics` as a mapping."""
        return cls(
            epoch=epoch,
            top1=validation["top1"],
            loss=validation["loss"],
            macro_f1=validation.get("macro_f1", 0.0),
            weights=None,
        )

    def metric(self, select_by: SelectBy) -> float:
        """Return the metric of that name."""
        return {"top1": self.top1, "loss": self.loss, "macro-f1": self.macro_f1}[select_by]

    def rank(self, select_by: SelectBy) -> tuple[float, float, int]:
        """Return the sort key, best first: better metric, then lower loss, then earlier epoch."""
        sign = 1 if select_by == "loss" else -1
        return sign * self.metric(select_by), self.loss, self.epoch


def rank_epochs(
    epochs: Iterable[RankedEpoch], select_by: SelectBy, samples: int = 0
) -> list[RankedEpoch]:
    """Return the epochs, best first.

    With `samples`, the size of the validation split, epoch 0 comes first unless another epoch is
    better by more than one standard error of its accuracy: among a hundred epochs, some predict one
    of few samples better by luck. The rule is that of Breiman et al. 1984, the simplest model
    within one standard error of the best. Example: 21 of 22 samples are right in epoch 0. By the
    rule of succession its accuracy is 22 / 24, with a standard error of 0.056. So 22 right samples
    are no clear gain. The loss has no such margin.
    """
    ranked = sorted(epochs, key=lambda epoch: epoch.rank(select_by))
    first = next((epoch for epoch in ranked if epoch.epoch == 0), None)
    if first is None or select_by == "loss" or not samples:
        return ranked

    of_best, of_first = (epoch.metric(select_by) for epoch in (ranked[0], first))
    expected = (of_first * samples + 1) / (samples + 2)
    error = math.sqrt(expected * (1 - expected) / (samples + 2))
    if of_best - of_first <= error:
        ranked.remove(first)
        ranked.insert(0, first)
    return ranked


class _Fit(TypedDict):
    loss: float
    top1: float


class _Ledger(TypedDict):
    seconds: float
    waiting_s: float
    limit: str


class _Row(TypedDict):
    epoch: Count
    train: _Fit
    val: _Fit
    ledger: _Ledger


HistoryRow = Annotated[dict[str, Any], conforms_to(_Row)]
"""Row of an epoch: losses, metrics and timings. It has more keys than those that are checked."""


def _require_two(sums: list[float]) -> list[float]:
    if len(sums) != 2:
        raise ValueError(f"expected 2 numbers, found {len(sums)}")
    return sums


@dataclass(kw_only=True)
class TrainState:
    """Progress of a training; JSON-able.

    `batch` batches of `epoch` (both from 0) are done, `step` steps since the beginning. `sums` are
    the loss and the correct predictions of the current epoch, summed over samples. `history` has a
    row per epoch. `best` lists the best epochs so far, best first.
    """

    ALL_KEYS = True  # see config/strict.py

    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    sums: Annotated[list[float], _require_two] = field(default_factory=lambda: [0.0, 0.0])
    history: list[HistoryRow] = field(default_factory=list)
    best: list[RankedEpoch] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Record of a checkpoint: `weights` of the evaluated model, `state` of the optimizer.

    `fixed` is the hash of the tensors that the training does not change, see `Optimizer`.
    """

    format: str
    fingerprint: str
    cursor: TrainState
    weights: ObjectRef
    state: ObjectRef
    fixed: str = ""


class Checkpoint(NamedTuple):
    """A checkpoint as read back: `weights` of the evaluated model, `optimizer` state tensors.

    `fixed` is the hash of the tensors that the training does not change; "" in old checkpoints.
    """

    state: TrainState
    weights: Tensors
    optimizer: Tensors
    fixed: str


def has_steps(store: Store, run: str) -> bool:
    """Return True if the run has a checkpoint of steps, from which it would resume.

    That of a solved head has none.
    """
    return any(versions(store, f"runs/{run}/checkpoints"))


class Checkpoints:
    """The checkpoints of one run. `fingerprint` identifies the training that they belong to."""

    def __init__(self, store: Store, run: str, fingerprint: str) -> None:
        self._store, self._folder, self._fingerprint = store, f"runs/{run}/checkpoints", fingerprint
        self._remedy = f"remove {store.uri(self._folder)} to begin anew"

    def save(
        self, state: TrainState, weights: ObjectRef, optimizer: Tensors, fixed: str = ""
    ) -> None:
        """Write a checkpoint, then delete the objects that neither it nor the best epochs need."""
        record = _Record(
            format=FORMAT,
            fingerprint=self._fingerprint,
            cursor=state,
            weights=weights,
            state=self.put(optimizer),
            fixed=fixed,
        )
        name = record_name(self._folder, state.step)
        if not self._store.put_if_absent(name, json.dumps(asdict(record), indent=1).encode()):
            # A concurrent duplicate of this run wrote the checkpoint; its objects are the ones to
            # keep.
            record = read_record(self._store, name, _Record, self._remedy)

        # A duplicate run that is ahead needs objects that are unknown here: delete none.
        if versions(self._store, self._folder)[-1] > state.step:
            return
        best = [*state.best, *record.cursor.best]
        self.delete_except(
            {name, record.weights.path, record.state.path}
            | {epoch.weights.path for epoch in best if epoch.weights}
        )

    def put(self, tensors: Tensors) -> ObjectRef:
        """Write tensors as an object named by its content."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(plain)
        return put_object(self._store, f"{self._folder}/{{hash}}.safetensors", data, len(plain))

    def get(self, ref: ObjectRef) -> Tensors:
        """Read tensors and verify their hash."""
        try:
            return safetensors.torch.load(get_object(self._store, ref))
        except (SafetensorError, ValueError) as error:
            raise RecordError(
                f"{self._store.uri(ref.path)} is no checkpoint ({error}); {self._remedy}"
            ) from error

    def have_steps(self) -> bool:
        """Return True if there is a checkpoint after the first step."""
        return any(versions(self._store, self._folder))

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, None if there is none.

        Raises ShortfallError if it belongs to another training, IntegrityError or RecordError if it
        is damaged.
        """
        version = latest(self._store, self._folder)
        if version is None:
            return None

        step, fields = version
        uri = self._store.uri(record_name(self._folder, step))
        if fields.get("format") not in _READABLE:
            raise RecordError(f"{uri} is no checkpoint of this version of afinar; {self._remedy}")
        record = as_record(fields, _Record, uri, self._remedy)
        if record.cursor.step != step:
            raise RecordError(f"{uri} is the checkpoint of another step; {self._remedy}")
        if record.fingerprint != self._fingerprint:
            raise ShortfallError(
                f"{uri} is a checkpoint of another training (another dataset version, "
                f"configuration or initial weights); {self._remedy}"
            )
        weights, optimizer = self.get(record.weights), self.get(record.state)
        return Checkpoint(record.cursor, weights, optimizer, record.fixed)

    def delete_except(self, needed: set[str]) -> None:
        """Delete all objects of the run's checkpoints whose path is not in `needed`."""
        for info in list(self._store.walk(self._folder)):
            if info.name not in needed:
                self._store.delete(info.name)
