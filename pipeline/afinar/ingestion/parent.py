"""The version that an ingest builds on, opened once: its objects are read at most once each."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa

from afinar.dataset.manifest import Manifest, read_tables
from afinar.dataset.reader import Dataset, open_current
from afinar.dataset.schema import INDEX, OUTCOMES
from afinar.ingestion.plan import known_outcomes
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import TRANSIENT
from afinar.sources.added_labels import ADDED
from afinar.storage.objects import ObjectRef
from afinar.storage.store import Store


class Parent:
    """The current version of a dataset, or nothing if the dataset has no version yet."""

    def __init__(self, dataset: Dataset | None, view: StoredView) -> None:
        self.dataset = dataset
        self._view = view

    @property
    def manifest(self) -> Manifest | None:
        """Head of the version, None if there is none."""
        return self.dataset.manifest if self.dataset else None

    @property
    def next_version(self) -> int:
        """Number of the version that comes next."""
        return self.dataset.manifest.version + 1 if self.dataset else 1

    @property
    def index(self) -> pa.Table:
        """Samples of the version: INDEX."""
        return self.dataset.index if self.dataset else INDEX.empty_table()

    @property
    def shards(self) -> list[ObjectRef]:
        """Shards of the version."""
        return self.dataset.objects_of("shard") if self.dataset else []

    @cached_property
    def added_labels(self) -> pa.Table:
        """Labels that were added to the dataset: ADDED."""
        refs = self.dataset.objects_of("labels") if self.dataset else []
        tables = read_tables(self.dataset.store, refs, ADDED, ADDED.names) if self.dataset else []
        return pa.concat_tables([ADDED.empty_table(), *tables])

    @property
    def has_view(self) -> bool:
        """True if the version was made with the preprocessing of this ingest."""
        return self.manifest is not None and self.manifest.preprocessing == self._view.as_dict()

    @cached_property
    def outcomes(self) -> pa.Table:
        """Known outcomes of the version's pictures: OUTCOMES.

        Empty if its preprocessing was another; without the transient rejects, which are tried
        again."""
        if self.dataset is None or not self.has_view:
            return OUTCOMES.empty_table()
        return known_outcomes(self.dataset.index, self.dataset.rejects, TRANSIENT)


def open_parent(store: Store, view: StoredView) -> Parent:
    """Open the current version of the dataset in `store`."""
    return Parent(open_current(store), view)
