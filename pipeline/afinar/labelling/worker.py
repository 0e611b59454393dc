"""The labelling worker: read, decode and predict the pictures of one unit, and commit their parts.

On a CPU one process does all of it. A worker with a GPU copies rows of mapped shards, or blocks of
pictures that other processes have decoded, and works on several units at a time: while it writes
the parts of one unit, the GPU computes the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from afinar.inference.batch_size import choose_batch_size
from afinar.inference.cpu import use_worker_cores
from afinar.inference.device import Images, device_for
from afinar.inference.picture_batches import Block, BlockBatches, PictureBatches, Pictures
from afinar.inference.pipeline import Pipeline, SubmittedBatch
from afinar.inference.predictor import Predictor, PredictorOutput, load_predictor
from afinar.labelling.tasks import LabelSpec
from afinar.models.registry.versions import find_model
from afinar.pictures.decode import configure_pillow
from afinar.pictures.rejects import ERASED, PictureError
from afinar.predictions.columns import Predicted, predictions_table
from afinar.predictions.schema import REJECTS, object_template
from afinar.sources.entry import Entry
from afinar.storage.arrow import to_parquet
from afinar.storage.markers import UnitMarker, commit_unit
from afinar.storage.objects import put_object
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.progress import PhaseTimer
from afinar.units.quarantine import QUARANTINED, BadInputTracker, track_bad_inputs
from afinar.units.results import UnitResult
from afinar.units.tasks import UnitTask

Row = dict[str, Any]


@dataclass
class LabelledRows:
    """Pictures of a unit: those that were predicted, in batches, and REJECTS."""

    batches: list[Predicted] = field(default_factory=list)
    rejects: list[Row] = field(default_factory=list)

    def add_reject(self, entry: Entry, error: PictureError) -> None:
        """Append a row for a picture that could not be used."""
        reject = {"uri": entry.uri, "etag": entry.etag}
        self.rejects.append({**reject, "reason": str(error.reason), "detail": error.detail})


@dataclass(frozen=True)
class _Batch:
    """Pictures on the device: their entries, the hashes of their files, and their place there."""

    entries: list[Entry]
    sample_ids: list[str]
    submitted: SubmittedBatch[PredictorOutput]


@dataclass(frozen=True)
class Labeller:
    """The unit function of one worker process. `store` is that of the predictions.

    Several threads may run units. Their pictures go through the one `pipeline`, a unit at a time.
    """

    spec: LabelSpec
    predictor: Predictor
    pipeline: Pipeline[PredictorOutput]
    pictures: Pictures
    store: Store

    def __call__(self, task: UnitTask, blocks: Iterable[Block] | None = None) -> UnitResult:
        """Run one unit. Running it twice cannot change a published object.

        `blocks` are the unit's pictures if other processes prepare them.
        """
        timer = PhaseTimer()
        tracker = track_bad_inputs(self.store, task.unit, task.attempt)
        rows = self.label(task.entries, timer, tracker, blocks)
        with timer.phase("write"):
            self._commit(task.unit, rows)
        tracker.clear()

        return UnitResult(task.unit, len(task.entries), len(rows.rejects), timer.seconds)

    def label(
        self,
        entries: Sequence[Entry],
        timer: PhaseTimer,
        tracker: BadInputTracker | None = None,
        blocks: Iterable[Block] | None = None,
    ) -> LabelledRows:
        """Read and predict these pictures. Without a `tracker` it is a first attempt."""
        tracker = tracker or BadInputTracker(self.store, unit="")
        rows = LabelledRows()
        for number in sorted(tracker.quarantined):
            rows.add_reject(entries[number], QUARANTINED)
        numbers = [number for number in range(len(entries)) if number not in tracker.quarantined]
        readable = [entries[number] for number in numbers]
        if blocks is None and not tracker.attempt:
            with timer.phase("fetch"):
                self.pictures.prefetch(readable)

        pending: deque[_Batch] = deque()
        try:
            with self.pipeline.filling(), self._batches(readable, timer, blocks) as batches:
                if tracker.attempt:
                    self._predict_singly(numbers, readable, batches, rows, timer, tracker)
                else:
                    self._submit_all(readable, batches, rows, timer, pending)
            while pending:
                self._collect(pending.popleft(), rows, timer)
        finally:
            for batch in pending:
                batch.submitted.discard()
        return rows

    def _batches(
        self, entries: Sequence[Entry], timer: PhaseTimer, blocks: Iterable[Block] | None
    ) -> AbstractContextManager[PictureBatches]:
        if blocks is None:
            return self.pictures.batches(entries, timer)
        return nullcontext(BlockBatches(blocks, timer))

    def _submit_all(
        self,
        entries: Sequence[Entry],
        batches: PictureBatches,
        rows: LabelledRows,
        timer: PhaseTimer,
        pending: deque[_Batch],
    ) -> None:
        """Submit all pictures; collect the results of all but the last batches."""
        size, most = self.pipeline.batch_size, self.pipeline.device.batches
        for start in range(0, len(entries), size):
            if len(pending) == most:
                self._collect(pending.popleft(), rows, timer)
            batch = self._submit(entries[start : start + size], batches, rows, timer)
            if batch is not None:
                pending.append(batch)

    def _predict_singly(
        self,
        numbers: Sequence[int],
        entries: Sequence[Entry],
        batches: PictureBatches,
        rows: LabelledRows,
        timer: PhaseTimer,
        tracker: BadInputTracker,
    ) -> None:
        """Predict one picture after the other, to find one that kills its worker."""
        for number, entry in zip(numbers, entries, strict=True):
            with tracker.working_on(number):
                batch = self._submit([entry], batches, rows, timer)
                if batch is not None:
                    self._collect(batch, rows, timer)

    def _submit(
        self,
        entries: Sequence[Entry],
        batches: PictureBatches,
        rows: LabelledRows,
        timer: PhaseTimer,
    ) -> _Batch | None:
        """Submit the next pictures and append rejects; return None if there is no picture."""
        good: list[Entry] = []
        sample_ids: list[str] = []

        def fill(images: Images) -> int:
            outcomes = batches.fill(entries, images)
            hashes = [outcome for outcome in outcomes if isinstance(outcome, str)]
            erased = self.spec.forgotten.intersection(hashes)
            if len(hashes) == len(entries) and not erased:
                good.extend(entries)
                sample_ids.extend(hashes)
                return len(good)

            is_kept = []  # of each image
            for entry, outcome in zip(entries, outcomes, strict=True):
                if isinstance(outcome, PictureError):
                    rows.add_reject(entry, outcome)
                    continue
                is_kept.append(outcome not in erased)
                if is_kept[-1]:
                    good.append(entry)
                    sample_ids.append(outcome)
                else:
                    rows.add_reject(entry, ERASED)
            images[: len(good)] = images[: len(is_kept)][np.array(is_kept, dtype=bool)]
            return len(good)

        submitted = self.pipeline.submit(fill)
        return None if submitted is None else _Batch(good, sample_ids, submitted)

    def _collect(self, batch: _Batch, rows: LabelledRows, timer: PhaseTimer) -> None:
        """Wait for a batch and append its rows."""
        with timer.phase("forward"):
            output = batch.submitted.result()
        rows.batches.append(
            Predicted(
                uris=[entry.uri for entry in batch.entries],
                sample_ids=batch.sample_ids,
                etags=[entry.etag for entry in batch.entries],
                scores=output.scores,
                features=output.features,
            )
        )

    def table(self, rows: LabelledRows) -> pa.Table:
        """Return the predictions of a unit, in its order: PREDICTIONS with the optional columns."""
        version, columns = self.predictor.version, self.spec.optional_columns
        return predictions_table(
            rows.batches, version.classes, self.spec.top_k, version.id, columns
        )

    def _commit(self, unit: str, rows: LabelledRows) -> None:
        objects = {}

        for kind, table in (
            ("part", self.table(rows)),
            ("rejects", pa.Table.from_pylist(rows.rejects, schema=REJECTS)),
        ):
            if len(table):
                name = object_template(kind, self.spec.partition, unit)
                objects[kind] = put_object(self.store, name, to_parquet(table), len(table))
        marker = UnitMarker(unit=unit, objects=objects)
        delete_own_parts(self.store, marker, commit_unit(self.store, marker))


def make_labeller(spec: LabelSpec) -> Labeller:
    """Load the model and open the source: the entry point of a worker process.

    Limits torch to the cores of the worker.
    """
    use_worker_cores()
    configure_pillow()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = load_predictor(
        *find_model(spec.model), device=device, precision=spec.precision, pictures=spec.pictures
    )

    batch_size = spec.batch_size or choose_batch_size(predictor, spec.pictures)
    chosen = device_for(predictor, features=spec.optional_columns.features)
    return Labeller(
        spec=spec,
        predictor=predictor,
        pipeline=Pipeline(chosen, batch_size, predictor.version.stored_view.size),
        pictures=spec.source.open_pictures(predictor.version.stored_view),
        store=open_store(spec.predictions),
    )


def delete_own_parts(store: Store, own: UnitMarker, committed: UnitMarker) -> None:
    """Delete the parts of this process that the committed marker does not name.

    A concurrent run of the same unit may have committed first. A reader of the folder that ignores
    the manifest would find these pictures twice.
    """
    kept = {ref.path for ref in committed.objects.values()}
    for ref in own.objects.values():
        if ref.path not in kept:
            store.delete(ref.path)
