"""Labelling one unit: read, decode, score, write. Decode and forward are fused, as they share the cores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.dataset.schema import Entry
from pipeline.dataset.tables import to_parquet
from pipeline.errors import PictureError, Reason
from pipeline.labelling.batches import usual_batch
from pipeline.labelling.output import PREDICTIONS, REJECTS, object_folder
from pipeline.labelling.predictor import Predictor, best_classes
from pipeline.labelling.suspects import Suspects
from pipeline.labelling.tasks import LabelSpec, LabelTask, UnitResult
from pipeline.models.versions import find_model
from pipeline.pictures.decode import Pixels, decode
from pipeline.pictures.reading import Listed, PictureReader
from pipeline.storage.commit import UnitMarker, commit_unit
from pipeline.storage.objects import put_object, sha256
from pipeline.storage.store import Store, open_store
from pipeline.work import Stages

Rows = list[dict[str, Any]]


class Labeller:
    """One worker process: the model loaded and its golden samples replayed once, then unit after unit."""

    def __init__(self, spec: LabelSpec) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(1)  # each worker has one core
        self.spec = spec
        self.predictor = Predictor(*find_model(spec.model), device=device, precision=spec.precision)
        self.batch_size = spec.batch_size or usual_batch(self.predictor, spec.pictures)
        self.source, self.out = open_store(spec.source), open_store(spec.predictions)

    def __call__(self, task: LabelTask) -> UnitResult:
        """Carry out one unit. Running it twice changes nothing that was committed.

        Where a worker was lost with the unit, this one goes picture by picture, to find one that kills it.
        """
        rows: Rows = []
        rejects: Rows = []
        stages = Stages()
        suspects = Suspects(self.out, task.unit, task.attempt)
        size = 1 if task.attempt else self.batch_size
        listed = (Listed(entry.name, entry.etag, entry.size) for entry in task.entries)
        with PictureReader(self.source).read_ahead(listed) as reads:
            for start in range(0, len(task.entries), size):
                entries = task.entries[start : start + size]
                with suspects.at(start):
                    convicted = start in suspects.convicted
                    rows += self._label(entries, _killer(reads) if convicted else reads, rejects, stages)
        with stages.timed("write"):
            self._commit(task.unit, rows, rejects)
        suspects.clear()
        return UnitResult(task.unit, len(task.entries), len(rejects), stages.seconds)

    def _label(
        self, entries: tuple[Entry, ...], reads: Iterator[bytes | PictureError], rejects: Rows, stages: Stages
    ) -> Rows:
        images, facts = self._decode(entries, reads, rejects, stages)
        if not images:
            return []
        with stages.timed("forward"):
            scores = self.predictor(np.stack(images))
        return [{**fact, **self._answer(one)} for fact, one in zip(facts, scores, strict=True)]

    def _decode(
        self, entries: tuple[Entry, ...], reads: Iterator[bytes | PictureError], rejects: Rows, stages: Stages
    ) -> tuple[list[Pixels], Rows]:
        """Stored views of the pictures that have one, and what is known of each; the others become rejects."""
        images: list[Pixels] = []
        facts: Rows = []
        for entry in entries:
            fact = {"uri": entry.uri, "etag": entry.etag}
            with stages.timed("fetch"):
                data = next(reads)
            with stages.timed("decode"):
                try:
                    images.append(decode(_bytes(data), self.predictor.version.stored_view).image)
                except PictureError as error:
                    rejects.append({**fact, "reason": str(error.reason), "detail": error.detail})
                else:
                    facts.append({**fact, "sample_id": sha256(_bytes(data))})
        return images, facts

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
        for kind, found, schema in (("part", rows, PREDICTIONS), ("rejects", rejects, REJECTS)):
            if found:
                name = f"{object_folder(kind, self.spec.partition)}/part-{unit}-{{hash}}.parquet"
                data = to_parquet(pa.Table.from_pylist(found, schema=schema))
                objects[kind] = put_object(self.out, name, data, len(found))
        mine = UnitMarker(unit=unit, objects=objects)
        theirs = commit_unit(self.out, mine)
        if theirs != mine:
            _withdraw(self.out, mine, theirs)


def _withdraw(store: Store, mine: UnitMarker, theirs: UnitMarker) -> None:
    """A twin committed first: take back what a plain reader of the folder would see twice."""
    kept = {ref.path for ref in theirs.objects.values()}
    for ref in mine.objects.values():
        if ref.path not in kept:
            store.delete(ref.path)


def _killer(reads: Iterator[bytes | PictureError]) -> Iterator[PictureError]:
    """The next picture's bytes are taken and left alone."""
    next(reads)
    yield PictureError(
        Reason.KILLED_WORKER, "two workers died, or were stuck, at this picture; it was not touched again"
    )


def _bytes(read: bytes | PictureError) -> bytes:
    if isinstance(read, PictureError):
        raise read
    return read
