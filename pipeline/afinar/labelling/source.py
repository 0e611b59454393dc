"""Where the pictures of a labelling come from: a folder or prefix, a list of URIs, or an ingested dataset.

A source tells the driver what there is to label, and a worker how to see it. Neither needs torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.label import LabelConfig
from afinar.dataset.manifest import FOLDER, FORMAT
from afinar.dataset.reader import open_dataset
from afinar.errors import RequestError, StorageError
from afinar.pictures.preprocessing import StoredView
from afinar.sources.entry import Entry
from afinar.sources.listing import as_listing, list_pictures
from afinar.sources.uri_list import list_named
from afinar.storage.open import normalize_uri, open_reader, open_store
from afinar.storage.versions import latest
from afinar.units.cut import iter_units
from afinar.units.estimate import list_requests, sample_pending

if TYPE_CHECKING:
    from afinar.inference.picture_stream import Pictures

_TABLES: Final = (".csv", ".parquet")


@dataclass(frozen=True)
class Source(ABC):
    """One place of pictures. `uri` is what the command line named, normalised."""

    uri: str

    @property
    def root(self) -> str:
        """What the names of entries are relative to; "" where they are whole URIs."""
        return ""

    @abstractmethod
    def listing(self) -> tuple[pa.Table, list[str]]:
        """Every picture, LISTING and where known `sample_id`, `shard` and `row`; and what a person should know of it.

        Raises RequestError where there is no picture.
        """

    @abstractmethod
    def requests(self, listed: int, work: pa.Table) -> dict[str, int]:
        """How many of which requests listing and reading take; `work` is the plan of what is to be read."""

    def sample(self, work: pa.Table) -> list[Entry]:
        """Some of the pictures to be read, to measure how long one takes."""
        return sample_pending(work, self.root)

    @abstractmethod
    def open(self, view: StoredView) -> Pictures:
        """What a worker sees the pictures through, as `view` has them."""

    def still_has(self, plan: pa.Table) -> bool:
        """Whether what an earlier run planned to read can still be read from here."""
        del plan
        return True


@dataclass(frozen=True)
class Folder(Source):
    """Files below a folder or a prefix, those with one of the `extensions` (None: all)."""

    extensions: tuple[str, ...] | None = None

    @property
    def root(self) -> str:
        """The folder."""
        return self.uri

    def listing(self) -> tuple[pa.Table, list[str]]:
        """See Source."""
        return list_pictures(self.uri, self.extensions), []

    def requests(self, listed: int, work: pa.Table) -> dict[str, int]:
        """See Source."""
        return {"LIST": list_requests(listed), "GET": len(work)}

    def open(self, view: StoredView) -> Pictures:
        """See Source."""
        from afinar.inference.picture_stream import Files

        return Files(open_reader(self.uri), view)


@dataclass(frozen=True)
class UriList(Source):
    """Files anywhere, named by a table. It is taken whole: whoever wrote it has chosen."""

    def listing(self) -> tuple[pa.Table, list[str]]:
        """See Source."""
        return list_named(self.uri)

    def requests(self, listed: int, work: pa.Table) -> dict[str, int]:
        """See Source. Folders of which the list names much take fewer: they are listed."""
        return {"HEAD": listed, "GET": len(work)}

    def open(self, view: StoredView) -> Pictures:
        """See Source."""
        from afinar.inference.picture_stream import UriPictures

        return UriPictures(view)


@dataclass(frozen=True)
class Shards(Source):
    """The samples of one version of an ingested dataset, whatever their split; held-out ones too.

    They go by the names and change marks of the pictures that they were made of, so that a picture counts as one
    whether it was labelled from its file or from its shard.
    """

    version: int = 0

    def listing(self) -> tuple[pa.Table, list[str]]:
        """See Source. In the order of the shards, so that a unit reads one or two; sizes are those of stored rows."""
        dataset = open_dataset(self.uri, version=self.version)
        if not len(dataset.index):
            raise RequestError(f"{self.uri} holds no samples")
        each = pa.array([ref.bytes // ref.rows for ref in dataset.shards], pa.int64())
        index = dataset.index.append_column("size", each.take(pa.array(dataset.shard_numbers)))
        index = index.sort_by([("shard", "ascending"), ("row", "ascending"), ("uri", "ascending")])
        found = as_listing(index)
        for name in ("sample_id", "shard", "row"):
            found = found.append_column(index.schema.field(name), index.column(name))
        return found, []

    def requests(self, listed: int, work: pa.Table) -> dict[str, int]:
        """See Source. A shard that two units share is read for each."""
        del listed
        return {"GET": len(work.group_by(["unit", "shard"]).aggregate([]))}

    def sample(self, work: pa.Table) -> list[Entry]:
        """See Source. One whole unit: pictures here and there would each cost a shard."""
        return [entry for _, entries in islice(iter_units(work, self.root), 1) for entry in entries]

    def open(self, view: StoredView) -> Pictures:
        """See Source."""
        from afinar.inference.picture_stream import Rows

        return Rows(open_dataset(self.uri, version=self.version, cache_bytes=_CACHE_BYTES), view)

    def still_has(self, plan: pa.Table) -> bool:
        """Whether this version has the shards of an older one's plan."""
        has = open_dataset(self.uri, version=self.version).shard_names
        gone = pc.invert(pc.is_in(plan.column("shard").drop_null(), pa.array(has, pa.string())))
        return not pc.any(gone).as_py()


_CACHE_BYTES: Final = 8 * 2**30  # of remote shards on one machine: each is read once


def open_source(config: LabelConfig, view: StoredView) -> Source:
    """Tell what SOURCE is: a table's file is a list, a folder with a manifest of ours a dataset, any other a folder.

    Raises RequestError for a dataset whose pictures are stored in another way than a model with this `view` sees them.
    """
    uri = normalize_uri(config.source)
    if _is_list(uri):
        return UriList(uri)
    version = _dataset_version(uri)
    if version is None:
        return Folder(uri, config.endings)
    _require_view(uri, version, view)
    return Shards(uri, version)


def _is_list(uri: str) -> bool:
    return uri.lower().endswith(_TABLES) and (uri.startswith("s3://") or not Path(uri).is_dir())


def _dataset_version(uri: str) -> int | None:
    store = open_store(uri)
    try:
        found = latest(store, FOLDER) if store.exists() else None
    except (
        StorageError,
        ValueError,
    ):  # or no JSON: not ours. A store that does not answer is the listing's to tell.
        return None
    if found is None or not isinstance(found[1], dict) or found[1].get("format") != FORMAT:
        return None
    return found[0]


def _require_view(uri: str, version: int, wanted: StoredView) -> None:
    dataset = open_dataset(uri, version=version)
    has = dataset.view
    # Of pixels the JPEG that a model has learned from can be made, but not the other way round.
    if replace(has, store=wanted.store) == wanted and has.store in {"pixels", wanted.store}:
        return
    raise RequestError(
        f"{uri} holds {_described(has)}, and the model sees {_described(wanted)}: ingest with --size {wanted.size} "
        f"--fit {wanted.fit} --store {wanted.store}, or label the pictures themselves: {dataset.manifest.source['uri']}"
    )


def _described(view: StoredView) -> str:
    return f"{view.size} x {view.size} px, {view.fit}, {view.store} ({view.decoder}, background {view.background})"
