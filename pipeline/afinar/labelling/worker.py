"""Labelling one unit: read, decode, score, write.

Decode and forward are fused in one process where they share its core; a GPU is fed blocks that other cores decode.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from afinar.inference.batch_size import choose_batch_size
from afinar.inference.picture_stream import Block, Seen, seen_in
from afinar.inference.predictor import best_classes, load_predictor
from afinar.inference.quarantine import BadInputTracker
from afinar.labelling.tasks import LabelSpec, LabelTask, UnitResult
from afinar.models.registry.versions import find_model
from afinar.pictures.decode import Pixels
from afinar.pictures.rejects import PictureError, Reason
from afinar.predictions.schema import REJECTS, object_template
from afinar.sources.entry import Entry
from afinar.storage.arrow import to_parquet
from afinar.storage.markers import UnitMarker, commit_unit
from afinar.storage.objects import put_object
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.progress import PhaseTimer

Rows = list[dict[str, Any]]


_KILLER: Final = PictureError(
    Reason.KILLED_WORKER,
    "two workers died, or were stuck, at this picture: it was not touched again",
)


class Labeller:
    """One worker process: the model loaded and its golden samples replayed once, then unit after unit."""

    def __init__(self, spec: LabelSpec) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(1)  # each worker has one core
        self.spec = spec
        self.predictor = load_predictor(*find_model(spec.model), device=device, precision=spec.precision)
        self.batch_size = spec.batch_size or choose_batch_size(self.predictor, spec.pictures)
        self.pictures = spec.source.open(self.predictor.version.stored_view)
        self.out = open_store(spec.predictions)

    def __call__(self, task: LabelTask, blocks: Iterable[Block] | None = None) -> UnitResult:
        """Carry out one unit. Running it twice changes nothing that was committed.

        `blocks` hold its pictures where others prepare them. Where a worker was lost with the unit, this one goes
        picture by picture, to find one that kills it.
        """
        stages = PhaseTimer()
        suspects = BadInputTracker(self.out, task.unit, task.attempt)
        if blocks is None:
            rows, rejects = self.answers(task.entries, stages, suspects)
        else:
            rows, rejects = self._score(task.entries, seen_in(blocks, stages), stages, suspects)
        with stages.phase("write"):
            self._commit(task.unit, rows, rejects)
        suspects.clear()
        return UnitResult(task.unit, len(task.entries), len(rejects), stages.seconds)

    def answers(
        self, entries: Sequence[Entry], stages: PhaseTimer, suspects: BadInputTracker | None = None
    ) -> tuple[Rows, Rows]:
        """What the model says of these pictures, a row each, and a reject for each that it could not see."""
        suspects = suspects or BadInputTracker(self.out, "", 0)
        left = [entry for number, entry in enumerate(entries) if number not in suspects.quarantined]
        with self.pictures.read(left, stages) as seen:
            return self._score(entries, seen, stages, suspects)

    def _score(
        self, entries: Sequence[Entry], seen: Seen, stages: PhaseTimer, suspects: BadInputTracker
    ) -> tuple[Rows, Rows]:
        """Rows and rejects of a unit; `seen` has every picture but the convicted."""
        rows: Rows = []
        rejects: Rows = [
            _rejected(entries[number], _KILLER) for number in sorted(suspects.quarantined)
        ]
        left = [number for number in range(len(entries)) if number not in suspects.quarantined]
        size = self.batch_size if suspects.attempt == 0 else 1
        for start in range(0, len(left), size):
            numbers = left[start : start + size]
            with suspects.at(numbers[0]):
                images, facts = _sorted([entries[number] for number in numbers], seen, rejects)
                if images:
                    rows += self._rows(images, facts, stages)
        return rows, rejects

    def _rows(self, images: list[Pixels], facts: Rows, stages: PhaseTimer) -> Rows:
        with stages.phase("forward"):
            scores, features = self.predictor.outputs(np.stack(images), self.spec.extras.features)
        extras = self.spec.extras.rows(scores, features)
        answers = (self._answer(one) for one in scores)
        return [
            {**fact, **one, **more} for fact, one, more in zip(facts, answers, extras, strict=True)
        ]

    def _answer(self, scores: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, Any]:
        best = best_classes(scores, self.spec.top_k)
        classes = self.predictor.classes
        return {
            "label": classes[best[0]],
            "score": float(scores[best[0]]),
            "top_labels": [classes[number] for number in best],
            "top_scores": [float(scores[number]) for number in best],
            "model_version": self.predictor.version.id,
        }

    def _commit(self, unit: str, rows: Rows, rejects: Rows) -> None:
        objects = {}
        for kind, found, schema in (
            ("part", rows, self.spec.extras.schema),
            ("rejects", rejects, REJECTS),
        ):
            if found:
                name = object_template(kind, self.spec.partition, unit)
                data = to_parquet(pa.Table.from_pylist(found, schema=schema))
                objects[kind] = put_object(self.out, name, data, len(found))
        mine = UnitMarker(unit=unit, objects=objects)
        theirs = commit_unit(self.out, mine)
        if theirs != mine:
            delete_own_parts(self.out, mine, theirs)


def _sorted(entries: Sequence[Entry], seen: Seen, rejects: Rows) -> tuple[list[Pixels], Rows]:
    """Stored views of the pictures that have one, and what is known of each; the others become rejects."""
    images: list[Pixels] = []
    facts: Rows = []
    for entry in entries:
        fact = {"uri": entry.uri, "etag": entry.etag}
        picture = next(seen)
        if isinstance(picture, PictureError):
            rejects.append(_rejected(entry, picture))
        else:
            images.append(picture.image)
            facts.append({**fact, "sample_id": picture.sample_id})
    return images, facts


def _rejected(entry: Entry, error: PictureError) -> dict[str, Any]:
    return {
        "uri": entry.uri,
        "etag": entry.etag,
        "reason": str(error.reason),
        "detail": error.detail,
    }


def delete_own_parts(store: Store, mine: UnitMarker, theirs: UnitMarker) -> None:
    """A twin committed first: take back what a plain reader of the folder would see twice."""
    kept = {ref.path for ref in theirs.objects.values()}
    for ref in mine.objects.values():
        if ref.path not in kept:
            store.delete(ref.path)
