"""The labelling worker: read, decode and predict the pictures of one unit, and commit their parts.

On a CPU one process does all of it. A worker with a GPU gets blocks of pictures that other
processes have decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from afinar.inference.batch_size import choose_batch_size
from afinar.inference.picture_stream import Block, Picture, Pictures, PictureStream, iter_blocks
from afinar.inference.predictor import Predictor, best_classes, load_predictor
from afinar.labelling.tasks import LabelSpec
from afinar.models.registry.versions import find_model
from afinar.pictures.decode import configure_pillow
from afinar.pictures.rejects import ERASED, PictureError
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
    """Rows of a unit: PREDICTIONS with the optional columns, and REJECTS."""

    predictions: list[Row] = field(default_factory=list)
    rejects: list[Row] = field(default_factory=list)

    def add_reject(self, entry: Entry, error: PictureError) -> None:
        """Append a row for a picture that could not be used."""
        reject = {"uri": entry.uri, "etag": entry.etag}
        self.rejects.append({**reject, "reason": str(error.reason), "detail": error.detail})


@dataclass(frozen=True)
class Labeller:
    """The unit function of one worker process. `store` is that of the predictions."""

    spec: LabelSpec
    predictor: Predictor
    batch_size: int
    pictures: Pictures
    store: Store

    def __call__(self, task: UnitTask, blocks: Iterable[Block] | None = None) -> UnitResult:
        """Run one unit. Running it twice cannot change a published object.

        `blocks` are the unit's pictures if other processes prepare them.
        """
        timer = PhaseTimer()
        tracker = track_bad_inputs(self.store, task.unit, task.attempt)
        if blocks is None:
            rows = self.label(task.entries, timer, tracker)
        else:
            rows = self._predict(task.entries, iter_blocks(blocks, timer), timer, tracker)
        with timer.phase("write"):
            self._commit(task.unit, rows)
        tracker.clear()

        return UnitResult(task.unit, len(task.entries), len(rows.rejects), timer.seconds)

    def label(
        self, entries: Sequence[Entry], timer: PhaseTimer, tracker: BadInputTracker | None = None
    ) -> LabelledRows:
        """Read and predict these pictures. Without a `tracker` it is a first attempt."""
        tracker = tracker or BadInputTracker(self.store, unit="")
        readable = [
            entry for number, entry in enumerate(entries) if number not in tracker.quarantined
        ]
        with self.pictures.read(readable, timer) as stream:
            return self._predict(entries, stream, timer, tracker)

    def _predict(
        self,
        entries: Sequence[Entry],
        stream: PictureStream,
        timer: PhaseTimer,
        tracker: BadInputTracker,
    ) -> LabelledRows:
        """Predict the pictures of `stream`, which has every entry but the quarantined ones."""
        rows = LabelledRows()
        for number in sorted(tracker.quarantined):
            rows.add_reject(entries[number], QUARANTINED)

        # After a death the unit goes picture by picture, to find one that kills its worker.
        size = self.batch_size if tracker.attempt == 0 else 1
        numbers = [number for number in range(len(entries)) if number not in tracker.quarantined]
        for start in range(0, len(numbers), size):
            batch = numbers[start : start + size]
            with tracker.working_on(batch[0]):
                decoded = self._split_decoded([entries[number] for number in batch], stream, rows)
                if decoded:
                    rows.predictions += self._predict_batch(decoded, timer)
        return rows

    def _split_decoded(
        self, entries: Sequence[Entry], stream: PictureStream, rows: LabelledRows
    ) -> list[tuple[Entry, Picture]]:
        """Take the next items of `stream`: return pictures, append all others to the rejects."""
        decoded = []
        for entry in entries:
            item = next(stream)
            if isinstance(item, PictureError):
                rows.add_reject(entry, item)
            elif item.sample_id in self.spec.forgotten:
                rows.add_reject(entry, ERASED)
            else:
                decoded.append((entry, item))
        return decoded

    def _predict_batch(
        self, decoded: Sequence[tuple[Entry, Picture]], timer: PhaseTimer
    ) -> Iterator[Row]:
        images = np.stack([picture.image for _, picture in decoded])
        columns = self.spec.optional_columns
        with timer.phase("forward"):
            output = self.predictor.outputs(images, columns.features)

        optional = columns.rows(output.scores, output.features)
        for (entry, picture), scores, more in zip(decoded, output.scores, optional, strict=True):
            known = {"uri": entry.uri, "etag": entry.etag, "sample_id": picture.sample_id}
            yield {**known, **self._predicted_columns(scores), **more}

    def _predicted_columns(self, scores: NDArray[np.float32]) -> Row:
        best = best_classes(scores, self.spec.top_k)
        classes = self.predictor.classes
        return {
            "label": classes[best[0]],
            "score": float(scores[best[0]]),
            "top_labels": [classes[number] for number in best],
            "top_scores": [float(scores[number]) for number in best],
            "model_version": self.predictor.version.id,
        }

    def _commit(self, unit: str, rows: LabelledRows) -> None:
        objects = {}

        for kind, records, schema in (
            ("part", rows.predictions, self.spec.optional_columns.schema),
            ("rejects", rows.rejects, REJECTS),
        ):
            if records:
                data = to_parquet(pa.Table.from_pylist(records, schema=schema))
                name = object_template(kind, self.spec.partition, unit)
                objects[kind] = put_object(self.store, name, data, len(records))
        marker = UnitMarker(unit=unit, objects=objects)
        delete_own_parts(self.store, marker, commit_unit(self.store, marker))


def make_labeller(spec: LabelSpec) -> Labeller:
    """Load the model and open the source: the entry point of a worker process.

    Limits torch to one thread, since a worker has one core.
    """
    torch.set_num_threads(1)
    configure_pillow()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = load_predictor(
        *find_model(spec.model), device=device, precision=spec.precision, pictures=spec.pictures
    )

    return Labeller(
        spec=spec,
        predictor=predictor,
        batch_size=spec.batch_size or choose_batch_size(predictor, spec.pictures),
        pictures=spec.source.open_stream(predictor.version.stored_view),
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
