"""Sources of a labelling: a folder or prefix, a list of URIs, or an ingested dataset.

A source lists its pictures for the driver and opens them for a worker. Neither needs torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.label import LabelConfig
from afinar.dataset.manifest import FOLDER, FORMAT
from afinar.dataset.reader import open_dataset
from afinar.errors import RecordError, RequestError, StorageError
from afinar.pictures.preprocessing import StoredView
from afinar.sources.entry import Entry
from afinar.sources.listing import AnnotatedListing, as_listing, list_pictures
from afinar.sources.uri_list import is_list, list_named
from afinar.storage.arrow import group_by
from afinar.storage.open import normalize_uri, open_reader, open_store
from afinar.storage.versions import latest
from afinar.units.cut import count_pending, iter_units
from afinar.units.estimate import list_requests, sample_pending

if TYPE_CHECKING:
    from afinar.inference.picture_batches import Pictures

_CACHE_BYTES: Final = 8 * 2**30  # of a remote dataset's shards on one machine: each is read once


@dataclass(frozen=True)
class Source(ABC):
    """One place of pictures. `uri` is normalised."""

    uri: str

    @property
    def root(self) -> str:
        """The folder that names of entries are relative to; "" if they are complete URIs."""
        return ""

    @abstractmethod
    def listing(self) -> AnnotatedListing:
        """List every picture, with notes for people. Raises RequestError if there is none.

        The table is LISTING, with `sample_id`, `shard` and `row` if they are known.
        """

    @abstractmethod
    def count_requests(self, plan: pa.Table) -> dict[str, int]:
        """Return the number of requests, by kind, to list all and read the pending pictures."""

    def sample(self, plan: pa.Table) -> list[Entry]:
        """Return some of the pending pictures of a plan, for measuring the time of one."""
        return sample_pending(plan, self.root)

    @abstractmethod
    def open_pictures(self, view: StoredView) -> Pictures:
        """Return the reader of a worker, which converts pictures to `view`."""

    def needs_decoding(self, view: StoredView) -> bool:
        """Return False if pictures are stored as the pixels of `view`."""
        del view
        return True

    def can_read(self, plan: pa.Table) -> bool:
        """Return False if pictures of an earlier run's plan can no longer be read from here."""
        del plan
        return True


@dataclass(frozen=True)
class FolderSource(Source):
    """Files in a folder or prefix that end in one of the `extensions` (None: all files).

    `target` is where the predictions go: it is left out if it lies in the folder.
    """

    extensions: tuple[str, ...] | None = None
    target: str = ""

    @property
    def root(self) -> str:
        return self.uri

    def listing(self) -> AnnotatedListing:
        return list_pictures(self.uri, self.extensions, self.target)

    def count_requests(self, plan: pa.Table) -> dict[str, int]:
        return {"LIST": list_requests(len(plan)), "GET": count_pending(plan, done=set())}

    def open_pictures(self, view: StoredView) -> Pictures:
        from afinar.inference.picture_batches import FilePictures

        return FilePictures(open_reader(self.uri), view)


@dataclass(frozen=True)
class UriListSource(Source):
    """Files anywhere that a table names. Every row is labelled, whatever its extension."""

    def listing(self) -> AnnotatedListing:
        return list_named(self.uri)

    def count_requests(self, plan: pa.Table) -> dict[str, int]:
        """Return an upper limit: a folder with many of the files is listed instead."""
        return {"HEAD": len(plan), "GET": count_pending(plan, done=set())}

    def open_pictures(self, view: StoredView) -> Pictures:
        from afinar.inference.picture_batches import UriPictures

        return UriPictures(view)


@dataclass(frozen=True)
class DatasetSource(Source):
    """All samples of one dataset version, whatever their split, excluded duplicates too.

    Entries have the uri and etag of the original picture. So a picture is labelled once, whether
    from its file or from its shard.
    """

    version: int = 0

    def listing(self) -> AnnotatedListing:
        """List the samples by shard and row, so that a unit reads one or two shards.

        `size` is the number of bytes of a stored row.
        """
        dataset = open_dataset(self.uri, version=self.version)
        if not len(dataset.index):
            raise RequestError(f"{self.uri} holds no samples")
        row_bytes = pa.array([ref.bytes // ref.rows for ref in dataset.shards], pa.int64())
        sizes = row_bytes.take(pa.array(dataset.shard_numbers))
        index = dataset.index.append_column("size", sizes)
        index = index.sort_by([("shard", "ascending"), ("row", "ascending"), ("uri", "ascending")])
        pictures = as_listing(index)
        for name in ("sample_id", "shard", "row"):
            pictures = pictures.append_column(index.schema.field(name), index.column(name))

        return AnnotatedListing(pictures)

    def count_requests(self, plan: pa.Table) -> dict[str, int]:
        """Return one read per unit and shard: a shard with rows of two units is read for both."""
        pending = plan.filter(pc.is_valid(plan.column("unit")))
        return {"GET": len(group_by(pending, ["unit", "shard"]).aggregate([]))}

    def sample(self, plan: pa.Table) -> list[Entry]:
        """Return one whole unit: a random sample would read a whole shard for each picture."""
        return [entry for _, entries in islice(iter_units(plan, self.root), 1) for entry in entries]

    def open_pictures(self, view: StoredView) -> Pictures:
        from afinar.inference.picture_batches import ShardPictures

        dataset = open_dataset(self.uri, version=self.version, cache_bytes=_CACHE_BYTES)
        return ShardPictures(dataset, view)

    def needs_decoding(self, view: StoredView) -> bool:
        stored = open_dataset(self.uri, version=self.version).view
        return (view.store, stored.store) != ("pixels", "pixels")

    def can_read(self, plan: pa.Table) -> bool:
        """Return False if this version lacks a shard that an older version's plan names."""
        names = pa.array(open_dataset(self.uri, version=self.version).shard_names, pa.string())
        missing = pc.invert(pc.is_in(plan.column("shard").drop_null(), names))
        return not pc.any(missing).as_py()


def open_source(config: LabelConfig, view: StoredView) -> Source:
    """Return the source that a configuration names.

    A table's file is a list, a folder with a dataset's manifest a dataset, any other
    a folder. Raises RequestError for a dataset whose stored view cannot serve a model with this
    `view`.
    """
    uri = normalize_uri(config.source)
    if is_list(uri):
        return UriListSource(uri)
    version = _dataset_version(uri)
    if version is None:
        target = normalize_uri(config.predictions)
        is_inside = target.startswith(f"{uri}/")
        return FolderSource(uri, config.endings, target if is_inside else "")
    require_view(uri, version, view)

    return DatasetSource(uri, version)


def _dataset_version(uri: str) -> int | None:
    """Return the newest version of a dataset; None for any other place.

    A manifest that is not JSON is not ours. If the store fails, listing the folder reports it.
    """
    store = open_store(uri)
    try:
        newest = latest(store, FOLDER) if store.exists() else None
    except (StorageError, RecordError):
        return None
    if newest is None:
        return None
    number, record = newest

    return number if record.get("format") == FORMAT else None


def require_view(uri: str, version: int, view: StoredView) -> None:
    """Raise RequestError if pixels of a dataset cannot be the input of a model with this view."""
    dataset = open_dataset(uri, version=version)
    stored = dataset.view
    # JPEGs can be made from stored pixels, but not the other way round.
    if replace(stored, store=view.store) == view and stored.store in {"pixels", view.store}:
        return
    pictures = dataset.manifest.source["uri"]
    raise RequestError(
        f"{uri} holds {_describe(stored)}, and the model needs {_describe(view)}: "
        + (
            f"ingest with --size {view.size} --fit {view.fit} --store {view.store}, or label the "
            f"pictures themselves: {pictures}"
            if stored.decoder == view.decoder
            else f"label the pictures themselves: {pictures}; or train a model on this dataset"
        )
    )


def _describe(view: StoredView) -> str:
    return (
        f"{view.size} x {view.size} px, {view.fit}, {view.store} "
        f"({view.decoder}, background {view.background})"
    )
