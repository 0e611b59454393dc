"""A unit's pictures as a stream of stored views, read from files or from a dataset's shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.dataset.shards import MappedShard
from afinar.pictures.decode import decode
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.jpeg import decode_stored, encode_stored
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from afinar.pictures.resize import Pixels
from afinar.sources.entry import Entry
from afinar.sources.uri_list import MISSING
from afinar.storage.multi_store import MultiStore
from afinar.storage.objects import sha256
from afinar.storage.store import Reader
from afinar.units.progress import PhaseTimer


class Picture(NamedTuple):
    """Stored view uint8 [size, size, 3], possibly read-only, and the hash of the picture's file."""

    image: Pixels
    sample_id: str


PictureStream: TypeAlias = Iterator[Picture | PictureError]
"""One item per entry, in order: the picture, or the reason why there is none."""


class Pictures(ABC):
    """Reads the pictures of one source in a worker."""

    @abstractmethod
    def read(
        self, entries: Sequence[Entry], timer: PhaseTimer
    ) -> AbstractContextManager[PictureStream]:
        """Return a context with the stream of these entries' pictures.

        Time is counted as `fetch` and `decode`. The stream raises StorageError if the store fails.
        """


class FilePictures(Pictures):
    """Files of one store, decoded."""

    def __init__(self, store: Reader, view: StoredView) -> None:
        self._store, self._view = store, view

    @contextmanager
    def read(self, entries: Sequence[Entry], timer: PhaseTimer) -> Iterator[PictureStream]:
        refs = (PictureRef(entry.name, entry.etag, entry.size) for entry in entries)
        with PictureReader(self._store).read_ahead(refs) as reads:
            yield (_decode(_fetch(reads, timer), self._view, timer) for _ in entries)


_MISSING: Final = PictureError(Reason.MISSING, "no such object when the list was looked up")


class UriPictures(Pictures):
    """Files of any store, decoded. Files that the list already found missing are not read."""

    def __init__(self, view: StoredView) -> None:
        self._view = view

    @contextmanager
    def read(self, entries: Sequence[Entry], timer: PhaseTimer) -> Iterator[PictureStream]:
        existing = [entry for entry in entries if entry.etag != MISSING]
        refs = [PictureRef(entry.uri, entry.etag, entry.size) for entry in existing]
        store = MultiStore(remote=any(ref.name.startswith("s3://") for ref in refs))
        with PictureReader(store).read_ahead(refs) as reads:
            yield (
                _MISSING
                if entry.etag == MISSING
                else _decode(_fetch(reads, timer), self._view, timer)
                for entry in entries
            )


def _fetch(reads: Iterator[bytes | PictureError], timer: PhaseTimer) -> bytes | PictureError:
    with timer.phase("fetch"):
        return next(reads)


def _decode(
    data: bytes | PictureError, view: StoredView, timer: PhaseTimer
) -> Picture | PictureError:
    if isinstance(data, PictureError):
        return data
    with timer.phase("decode"):
        try:
            return Picture(decode(data, view).image, sha256(data))
        except PictureError as error:
            return error


class ShardPictures(Pictures):
    """Rows of a dataset's shards. Only a `jpeg` store needs decoding.

    One shard is mapped at a time, and stays mapped from one unit to the next.
    """

    def __init__(self, dataset: Dataset, view: StoredView) -> None:
        self._dataset = dataset
        # A model trained on a `jpeg` store has learned from compressed pixels. Compress those of a
        # `pixels` store as well, so that both give the same input.
        self._through_jpeg = view.store == "jpeg" and dataset.view.store == "pixels"
        self._mapped: tuple[str, MappedShard] | None = None

    @contextmanager
    def read(self, entries: Sequence[Entry], timer: PhaseTimer) -> Iterator[PictureStream]:
        yield (self._picture(entry, timer) for entry in entries)

    def _picture(self, entry: Entry, timer: PhaseTimer) -> Picture:
        assert entry.shard is not None and entry.row is not None and entry.sample_id is not None
        with timer.phase("fetch"):
            shard = self._shard(entry.shard)
        with timer.phase("decode"):
            image = shard.picture(entry.row)
            if self._through_jpeg:
                image = decode_stored(encode_stored(image))
        return Picture(image, entry.sample_id)

    def _shard(self, path: str) -> MappedShard:
        if self._mapped is None or self._mapped[0] != path:
            self._mapped = (path, self._dataset.map_shard(path))
        return self._mapped[1]


@dataclass(frozen=True)
class Block:
    """Some pictures of a unit, prepared in another process.

    `outcomes` has one item per entry: the hash of its file, or the reason why there is no picture.
    `images` are the stored views of the pictures, uint8 [n, size, size, 3]. `phases` are seconds.
    """

    images: NDArray[np.uint8]
    outcomes: list[str | PictureError]
    phases: dict[str, float]


def make_block(pictures: Pictures, entries: Sequence[Entry]) -> Block:
    """Read and decode the pictures of these entries."""
    timer = PhaseTimer()
    with pictures.read(entries, timer) as stream:
        items = list(stream)
    images = [item.image for item in items if isinstance(item, Picture)]
    outcomes = [item.sample_id if isinstance(item, Picture) else item for item in items]
    return Block(np.stack(images) if images else np.empty(0, np.uint8), outcomes, timer.seconds)


def iter_blocks(blocks: Iterable[Block], timer: PhaseTimer) -> PictureStream:
    """Yield the pictures of blocks. Waiting for a block counts as `feed`."""
    iterator = iter(blocks)
    while True:
        with timer.phase("feed"):
            block = next(iterator, None)
        if block is None:
            return
        images = iter(block.images)
        for outcome in block.outcomes:
            yield outcome if isinstance(outcome, PictureError) else Picture(next(images), outcome)
