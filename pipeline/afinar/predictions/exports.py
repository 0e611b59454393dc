"""Files derived from a published partition on request: the single file and the review queue.

They are named after the digest of the partition's rows and hold nothing that the parts do not. So a
run that is killed before it has written them loses nothing: the next run finds them missing and
writes them. Those of older rows are deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from afinar.config.label import LabelConfig
from afinar.errors import NotFoundError
from afinar.predictions.manifest import Partition, read_manifest
from afinar.predictions.review_queue import (
    PageRenderer,
    Reviewer,
    delete_old_queues,
    review_folder,
)
from afinar.predictions.single_file import delete_old_singles, single_folder, write_single
from afinar.storage.store import Store

# Each attempt follows one more publication by a concurrent writer. If all fail, the run of the last
# writer still writes the exports.
_ATTEMPTS: Final = 5


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """URIs of the single file and of the review queue, "" if there is none.

    `abstained` is the number of predictions below the threshold.
    """

    single: str = ""
    review: str = ""
    abstained: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exports:
    """The exports of one partition that `config` asks for. `classes` are those of the model."""

    store: Store
    partition: str
    config: LabelConfig
    classes: list[str]
    render_page: PageRenderer | None = None

    def write(self) -> ExportResult:
        """Write the exports that are missing, delete those of older rows.

        If a concurrent writer publishes meanwhile, begin again with the rows that it published.
        """
        result = ExportResult()
        for _ in range(_ATTEMPTS):
            partition = self._read_partition()
            if partition is None:
                break
            try:
                result = self._write(partition)
            except NotFoundError:  # a concurrent writer has deleted a part
                if _digest(self._read_partition()) == _digest(partition):
                    raise
                continue
            current = self._delete_old(result.notes)
            if _digest(current) == _digest(partition):
                break
        return result

    def _write(self, partition: Partition) -> ExportResult:
        single = review = ""
        abstained = 0
        if self.config.single:
            single = self.store.uri(write_single(self.store, self.partition, partition))
        if self.config.abstain_below:
            threshold = self.config.abstain_below
            reviewer = Reviewer(
                self.store, self.partition, self.classes, threshold, self.render_page
            )
            folder, abstained = reviewer.write(partition)
            review = self.store.uri(folder)

        return ExportResult(single=single, review=review, abstained=abstained)

    def _delete_old(self, notes: list[str]) -> Partition | None:
        """Delete exports of older rows, whoever wrote them; append notes on what is kept.

        Returns the current partition. It is read after the files are listed: a file that was listed
        is of these rows or of older ones.
        """
        singles = [info.name for info in self.store.walk(single_folder(self.partition))]
        reviews = [info.name for info in self.store.walk(review_folder(self.partition))]
        partition = self._read_partition()

        delete_old_singles(self.store, self.partition, partition, singles)
        for form in delete_old_queues(self.store, self.partition, partition, reviews):
            notes.append(
                f"{self.store.uri(form)} was edited and is kept for `afinar ingest --labels`"
            )
        return partition

    def _read_partition(self) -> Partition | None:
        return read_manifest(self.store).partitions.get(self.partition)


def _digest(partition: Partition | None) -> str | None:
    return partition.list_digest if partition else None
