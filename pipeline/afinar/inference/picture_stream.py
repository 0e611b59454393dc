"""A unit's pictures as a network sees them, one after the other, wherever they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.dataset.shards import MappedShard
from afinar.pictures.decode import Pixels, decode
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.jpeg import decode_stored, encode_stored
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from afinar.sources.entry import Entry
from afinar.sources.uri_list import MISSING
from afinar.storage.multi_store import MultiStore
from afinar.storage.objects import sha256
from afinar.storage.store import Reader
from afinar.units.progress import PhaseTimer


class Picture(NamedTuple):
    """One picture: uint8 [size, size, 3], which may be read-only, and the hash of its file."""

    image: Pixels
    sample_id: str


Seen = Iterator[Picture | PictureError]


class Pictures(ABC):
    """Where a worker's pictures come from."""

    @abstractmethod
    def read(self, entries: Sequence[Entry], stages: PhaseTimer) -> AbstractContextManager[Seen]:
        """Within the block, each entry's picture in the entries' order, or why there is none.

        Time is counted as `fetch` and `decode`. The iterator raises StorageError when it is the store that fails.
        """


@dataclass(frozen=True)
class Block:
    """Some pictures of a unit, prepared in another process: `images` uint8 [n, size, size, 3] of those that can be
    seen, and for each entry the hash of its file or why there is none."""

    images: NDArray[np.uint8]
    outcomes: list[str | PictureError]
    stages: dict[str, float]


def make_block(pictures: Pictures, entries: Sequence[Entry]) -> Block:
    """Prepare some pictures."""
    stages = PhaseTimer()
    with pictures.read(entries, stages) as seen:
        found = list(seen)
    images = [one.image for one in found if isinstance(one, Picture)]
    outcomes = [one.sample_id if isinstance(one, Picture) else one for one in found]
    return Block(np.stack(images) if images else np.empty(0, np.uint8), outcomes, stages.seconds)


def seen_in(blocks: Iterable[Block], stages: PhaseTimer) -> Seen:
    """The pictures of blocks, one after the other; waiting for them counts as `feed`."""
    coming = iter(blocks)
    while True:
        with stages.phase("feed"):
            block = next(coming, None)
        if block is None:
            return
        images = iter(block.images)
        for outcome in block.outcomes:
            yield outcome if isinstance(outcome, PictureError) else Picture(next(images), outcome)


class Files(Pictures):
    """Files of one store, decoded."""

    def __init__(self, store: Reader, view: StoredView) -> None:
        self._store, self._view = store, view

    @contextmanager
    def read(self, entries: Sequence[Entry], stages: PhaseTimer) -> Iterator[Seen]:
        """See Pictures."""
        listed = (PictureRef(entry.name, entry.etag, entry.size) for entry in entries)
        with PictureReader(self._store).read_ahead(listed) as reads:
            yield (_decoded(_next(reads, stages), self._view, stages) for _ in entries)


class UriPictures(Pictures):
    """Files of any store, decoded. What was not there when it was looked up is not asked for."""

    def __init__(self, view: StoredView) -> None:
        self._view = view

    @contextmanager
    def read(self, entries: Sequence[Entry], stages: PhaseTimer) -> Iterator[Seen]:
        """See Pictures."""
        there = [
            PictureRef(entry.uri, entry.etag, entry.size)
            for entry in entries
            if entry.etag != MISSING
        ]
        places = MultiStore(remote=any(picture.name.startswith("s3://") for picture in there))
        with PictureReader(places).read_ahead(there) as reads:
            yield (
                _NOT_THERE
                if entry.etag == MISSING
                else _decoded(_next(reads, stages), self._view, stages)
                for entry in entries
            )


_NOT_THERE: Final = PictureError(Reason.MISSING, "no such object when the list was looked up")


def _next(reads: Iterator[bytes | PictureError], stages: PhaseTimer) -> bytes | PictureError:
    with stages.phase("fetch"):
        return next(reads)


def _decoded(
    data: bytes | PictureError, view: StoredView, stages: PhaseTimer
) -> Picture | PictureError:
    if isinstance(data, PictureError):
        return data
    with stages.phase("decode"):
        try:
            return Picture(decode(data, view).image, sha256(data))
        except PictureError as error:
            return error


class Rows(Pictures):
    """Rows of a dataset's shards: nothing is decoded but the squares of a `jpeg` store.

    One shard is mapped at a time, also from one unit to the next.
    """

    def __init__(self, dataset: Dataset, view: StoredView) -> None:
        self._dataset = dataset
        # A model that has learned from JPEGs sees of a file the JPEG's pixels: so it does of a shard of pixels.
        self._through_jpeg = view.store == "jpeg" and dataset.view.store == "pixels"
        self._mapped: tuple[str, MappedShard] | None = None

    @contextmanager
    def read(self, entries: Sequence[Entry], stages: PhaseTimer) -> Iterator[Seen]:
        """See Pictures."""
        yield (self._picture(entry, stages) for entry in entries)

    def _picture(self, entry: Entry, stages: PhaseTimer) -> Picture:
        assert entry.shard is not None and entry.row is not None and entry.sample_id is not None
        with stages.phase("fetch"):
            shard = self._shard(entry.shard)
        with stages.phase("decode"):
            image = shard.picture(entry.row)
            if self._through_jpeg:
                image = decode_stored(encode_stored(image))
        return Picture(image, entry.sample_id)

    def _shard(self, path: str) -> MappedShard:
        if self._mapped is None or self._mapped[0] != path:
            self._mapped = (path, self._dataset.map_shard(path))
        return self._mapped[1]
