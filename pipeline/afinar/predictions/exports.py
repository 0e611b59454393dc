"""What a run makes of its partition on request, once that is published: one file of it, and its review queue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from afinar.config.jobs import LabelConfig
from afinar.errors import NotFoundError
from afinar.predictions.manifest import FOLDER
from afinar.predictions.part_reader import list_digest
from afinar.predictions.review_queue import PageRenderer, Reviewer, review_folder, sweep_reviews
from afinar.predictions.single_file import single_folder, sweep_single, write_single
from afinar.storage.commit import Record, latest
from afinar.storage.store import Store

_ATTEMPTS: Final = (
    5  # each on top of one more rival's manifest; the last one's own run makes it in any case
)


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Where the single file and the review queue lie, "" where there is none, and how many rows are below the
    threshold."""

    single: str = ""
    review: str = ""
    abstained: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exports:
    """What `config` asks for of one partition."""

    store: Store
    partition: str
    config: LabelConfig
    classes: list[str]
    gallery: PageRenderer | None = None

    def make(self) -> ExportResult:
        """Make what is asked for and missing, and remove what is superseded."""
        made = ExportResult()
        for _ in range(_ATTEMPTS):
            entry = self._entry()
            if entry is None:
                break
            try:
                made = self._made(entry)
            except NotFoundError:  # a rival published and removed a superseded part
                if _state(self._entry()) == _state(entry):
                    raise
                continue
            notes, now = self._sweep()
            made.notes.extend(notes)
            if now == _state(entry):
                break
        return made

    def _made(self, entry: Record) -> ExportResult:
        single = review = ""
        abstained = 0
        if self.config.single:
            single = self.store.uri(write_single(self.store, self.partition, entry))
        if self.config.abstain_below:
            reviewer = Reviewer(
                self.store, self.partition, self.classes, self.config.abstain_below, self.gallery
            )
            folder, abstained = reviewer.write(entry)
            review = self.store.uri(folder)
        return ExportResult(single=single, review=review, abstained=abstained)

    def _sweep(self) -> tuple[list[str], str | None]:
        """Remove what is superseded, whoever made it; remarks, and the state that is current."""
        files = [info.name for info in self.store.walk(single_folder(self.partition))]
        reviews = [info.name for info in self.store.walk(review_folder(self.partition))]
        entry = (
            self._entry()
        )  # read last: whatever was made meanwhile is of it, or of one still to come
        sweep_single(self.store, self.partition, entry, files)
        edited = sweep_reviews(self.store, self.partition, entry, reviews)
        return [
            f"{self.store.uri(name)} was edited and stays: `afinar ingest … --labels` takes it"
            for name in edited
        ], _state(entry)

    def _entry(self) -> Record | None:
        found = latest(self.store, FOLDER)
        entry: Record | None = found[1]["partitions"].get(self.partition) if found else None
        return entry


def _state(entry: Record | None) -> str | None:
    return list_digest(entry) if entry else None
