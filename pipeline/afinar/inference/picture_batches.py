"""A unit's pictures in batches of stored views, from files or from a dataset's shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.dataset.shards import MappedShard
from afinar.pictures.decode import decode_into
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

_MAPPED_SHARDS: Final = 8  # a unit has pictures of two or three; some units are read at a time


Outcome: TypeAlias = str | PictureError
"""The hash of a picture's file, or the reason why there is no picture."""


class PictureBatches(Protocol):
    """A unit's pictures, in order, which are copied into memory of the caller."""

    def fill(self, entries: Sequence[Entry], images: NDArray[np.uint8]) -> list[Outcome]:
        """Copy the pictures of the next `entries` into `images`, without gaps.

        `images` is uint8 [n, size, size, 3] with room for all. Returns one outcome per entry; the
        first k images are those of the k entries whose outcome is a hash.
        """
        ...


class Pictures(ABC):
    """Reads the pictures of one source in a worker."""

    @abstractmethod
    def batches(
        self, entries: Sequence[Entry], timer: PhaseTimer
    ) -> AbstractContextManager[PictureBatches]:
        """Return a context in which the pictures of these entries are copied into batches.

        Time is counted as `fetch`, `decode` and `copy`. Filling a batch raises StorageError if the
        store fails.
        """

    def prefetch(self, entries: Sequence[Entry]) -> None:
        """Prepare to read these entries soon. Called by other threads than the reading one."""
        del entries


class FilePictures(Pictures):
    """Files of one store, decoded."""

    def __init__(self, store: Reader, view: StoredView) -> None:
        self._store, self._view = store, view

    @contextmanager
    def batches(self, entries: Sequence[Entry], timer: PhaseTimer) -> Iterator[PictureBatches]:
        refs = (PictureRef(entry.name, entry.etag, entry.size) for entry in entries)
        with PictureReader(self._store).read_ahead(refs) as reads:
            yield _DecodedBatches(reads, self._view, timer)


_MISSING: Final = PictureError(Reason.MISSING, "no such object when the list was looked up")


class UriPictures(Pictures):
    """Files of any store, decoded. Files that the list already found missing are not read."""

    def __init__(self, view: StoredView) -> None:
        self._view = view

    @contextmanager
    def batches(self, entries: Sequence[Entry], timer: PhaseTimer) -> Iterator[PictureBatches]:
        existing = [entry for entry in entries if entry.etag != MISSING]
        refs = [PictureRef(entry.uri, entry.etag, entry.size) for entry in existing]
        store = MultiStore(remote=any(ref.name.startswith("s3://") for ref in refs))
        with PictureReader(store).read_ahead(refs) as reads:
            found = (_MISSING if entry.etag == MISSING else next(reads) for entry in entries)
            yield _DecodedBatches(found, self._view, timer)


class _DecodedBatches:
    """Pictures whose files are decoded into the batch."""

    def __init__(
        self, reads: Iterator[bytes | PictureError], view: StoredView, timer: PhaseTimer
    ) -> None:
        self._reads, self._view, self._timer = reads, view, timer

    def fill(self, entries: Sequence[Entry], images: NDArray[np.uint8]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        filled = 0
        for _ in entries:
            with self._timer.phase("fetch"):
                data = next(self._reads)
            if isinstance(data, PictureError):
                outcomes.append(data)
                continue
            with self._timer.phase("decode"):
                try:
                    decode_into(data, self._view, images[filled])
                except PictureError as error:
                    outcomes.append(error)
                    continue
                outcomes.append(sha256(data))
            filled += 1
        return outcomes


class ShardPictures(Pictures):
    """Rows of a dataset's shards. Only a `jpeg` store needs decoding.

    The shards of a few units stay mapped. Several threads may read.
    """

    def __init__(self, dataset: Dataset, view: StoredView, decoders: int = 1) -> None:
        """Read with `decoders` threads, which decode the pictures of a `jpeg` store ahead."""
        self._dataset, self._decoders = dataset, decoders
        # A model trained on a `jpeg` store has learned from compressed pixels. Compress those of a
        # `pixels` store as well, so that both give the same input.
        self._through_jpeg = view.store == "jpeg" and dataset.view.store == "pixels"
        self._copies = dataset.view.store == "pixels" and not self._through_jpeg
        self._mapped: OrderedDict[str, Future[MappedShard]] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def batches(self, entries: Sequence[Entry], timer: PhaseTimer) -> Iterator[PictureBatches]:
        if self._copies:
            yield _RowBatches(self._shard, timer)
        elif self._decoders == 1:
            yield _ImageBatches(self._decode(entry, timer) for entry in entries)
        else:
            with ThreadPoolExecutor(self._decoders) as pool:
                # The time of each thread is no time of the unit's.
                images = pool.map(lambda entry: self._decode(entry, PhaseTimer()), entries)
                yield _ImageBatches(images)

    def prefetch(self, entries: Sequence[Entry]) -> None:
        """Map and verify the shards, so that the reading thread need not."""
        for path in dict.fromkeys(entry.shard for entry in entries):
            assert path is not None
            self._shard(path)

    def _decode(self, entry: Entry, timer: PhaseTimer) -> Pixels:
        assert entry.shard is not None and entry.row is not None
        with timer.phase("fetch"):
            shard = self._shard(entry.shard)
        with timer.phase("decode"):
            image = shard.picture(entry.row)
            if self._through_jpeg:
                image = decode_stored(encode_stored(image))
        return image

    def _shard(self, path: str) -> MappedShard:
        """Return a mapped shard. One thread maps it, others that need it wait."""
        with self._lock:
            shard = self._mapped.get(path)
            is_new = shard is None
            if shard is None:
                shard = self._mapped[path] = Future()
                while len(self._mapped) > _MAPPED_SHARDS:
                    self._mapped.popitem(last=False)
            else:
                self._mapped.move_to_end(path)

        if is_new:
            try:
                shard.set_result(self._dataset.map_shard(path))
            except BaseException as error:
                with self._lock:
                    self._mapped.pop(path, None)
                shard.set_exception(error)
                raise
        return shard.result()


class _ImageBatches:
    """Rows of shards that were decoded, one image per entry, each copied into the batch."""

    def __init__(self, images: Iterator[Pixels]) -> None:
        self._images = images

    def fill(self, entries: Sequence[Entry], images: NDArray[np.uint8]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for number, entry in enumerate(entries):
            assert entry.sample_id is not None
            images[number] = next(self._images)
            outcomes.append(entry.sample_id)
        return outcomes


class _RowBatches:
    """Rows of shards of pixels, each copied once: from the mapped file into the batch."""

    def __init__(self, shard: Callable[[str], MappedShard], timer: PhaseTimer) -> None:
        self._shard, self._timer = shard, timer

    def fill(self, entries: Sequence[Entry], images: NDArray[np.uint8]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        path, shard = None, None
        with self._timer.phase("copy"):
            for number, entry in enumerate(entries):
                assert entry.shard is not None and entry.row is not None
                assert entry.sample_id is not None
                if shard is None or entry.shard != path:
                    path, shard = entry.shard, self._shard(entry.shard)
                images[number] = shard.picture(entry.row)
                outcomes.append(entry.sample_id)
        return outcomes


@dataclass(frozen=True)
class Block:
    """Some pictures of a unit, prepared in another process.

    `outcomes` has one item per entry: the hash of its file, or the reason why there is no picture.
    `images` are the stored views of the pictures, uint8 [n, size, size, 3]. `phases` are seconds.
    """

    images: NDArray[np.uint8]
    outcomes: list[Outcome]
    phases: dict[str, float]


def make_block(pictures: Pictures, entries: Sequence[Entry], size_px: int) -> Block:
    """Read and decode the pictures of these entries."""
    timer = PhaseTimer()
    images = np.empty((len(entries), size_px, size_px, 3), np.uint8)
    with pictures.batches(entries, timer) as batches:
        outcomes = batches.fill(entries, images)
    count = sum(isinstance(outcome, str) for outcome in outcomes)
    return Block(images[:count], outcomes, timer.seconds)


class BlockBatches:
    """Pictures of blocks. Waiting for a block counts as `feed`, copying it as `copy`."""

    def __init__(self, blocks: Iterable[Block], timer: PhaseTimer) -> None:
        self._blocks, self._timer = iter(blocks), timer
        self._block = Block(np.empty(0, np.uint8), [], {})
        self._outcomes = self._images = 0  # taken of the block

    def fill(self, entries: Sequence[Entry], images: NDArray[np.uint8]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        filled = 0
        while len(outcomes) < len(entries):
            if self._outcomes == len(self._block.outcomes):
                with self._timer.phase("feed"):
                    self._block = next(self._blocks)
                self._outcomes = self._images = 0
            first = self._outcomes
            taken = self._block.outcomes[first : first + len(entries) - len(outcomes)]
            count = sum(isinstance(outcome, str) for outcome in taken)
            if count:
                with self._timer.phase("copy"):
                    images[filled : filled + count] = self._block.images[self._images :][:count]
            outcomes += taken
            filled += count
            self._outcomes += len(taken)
            self._images += count
        return outcomes
