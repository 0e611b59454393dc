"""From listed objects to their bytes, or to a reason why not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from afinar.errors import ChangedError, ForbiddenError, NotFoundError, StorageError
from afinar.pictures.decode import DEFAULT_LIMITS, Limits
from afinar.pictures.rejects import PictureError, Reason

_IN_A_ROW: Final = 20
_ANNOUNCED: Final = 8  # files that the kernel is asked to read ahead
_AHEAD_BYTES: Final = 256 * 2**20  # of pictures read and not yet decoded: bounds a worker's memory


class PictureRef(NamedTuple):
    """A picture as listed: its object's name below the source, its change mark, its size in bytes."""

    name: str
    etag: str
    size: int


class Readable(Protocol):
    """What reading pictures asks of a store."""

    @property
    def parallel_reads(self) -> int:
        """See Store."""
        ...

    def get(self, name: str, etag: str | None = None) -> bytes:
        """See Store."""
        ...

    def prefetch(self, name: str) -> None:
        """See Store."""
        ...

    def exists(self) -> bool:
        """See Store."""
        ...


class PictureReader:
    """Reads the pictures of one unit, and tells a store that is gone from pictures that are."""

    def __init__(self, store: Readable, limits: Limits = DEFAULT_LIMITS) -> None:
        self._store, self._limits = store, limits
        self._consecutive_failures = 0

    def read(self, picture: PictureRef) -> bytes:
        """Read one picture.

        Raises PictureError with a reason that says what kept the bytes away; StorageError when that
        happened to twenty pictures in a row: then it is the store, and the unit is to be tried again.
        """
        return self._judged(_fetch(self._store, self._limits, picture))

    @contextmanager
    def read_ahead(
        self, pictures: Iterable[PictureRef]
    ) -> Iterator[Iterator[bytes | PictureError]]:
        """Read pictures in their order, as many at once as the store rewards, ahead of whoever decodes them.

        Within the block the iterator yields what `read` returns or the PictureError it raises; it raises StorageError
        as `read` does. The block ends the threads: left to the garbage collector they would be ended at any moment,
        inside another thread pool's lock too.
        """
        if self._store.parallel_reads == 1:
            yield self._one_by_one(pictures)
            return
        pool = ThreadPoolExecutor(self._store.parallel_reads)
        try:
            yield self._at_once(pool, pictures)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _one_by_one(self, pictures: Iterable[PictureRef]) -> Iterator[bytes | PictureError]:
        coming: deque[PictureRef] = deque()
        for picture in pictures:
            self._store.prefetch(picture.name)
            coming.append(picture)
            if len(coming) > _ANNOUNCED:
                yield self._outcome(_fetch(self._store, self._limits, coming.popleft()))
        while coming:
            yield self._outcome(_fetch(self._store, self._limits, coming.popleft()))

    def _at_once(
        self, pool: ThreadPoolExecutor, pictures: Iterable[PictureRef]
    ) -> Iterator[bytes | PictureError]:
        under_way: deque[tuple[int, Future[bytes | PictureError]]] = deque()
        ahead = 0
        for picture in pictures:
            while under_way and self._is_far_ahead(len(under_way), ahead + picture.size):
                size, read = under_way.popleft()
                ahead -= size
                yield self._outcome(read.result())
            under_way.append(
                (picture.size, pool.submit(_fetch, self._store, self._limits, picture))
            )
            ahead += picture.size
        while under_way:
            yield self._outcome(under_way.popleft()[1].result())

    def _is_far_ahead(self, pictures: int, size: int) -> bool:
        return pictures >= 2 * self._store.parallel_reads or size > _AHEAD_BYTES

    def _outcome(self, outcome: bytes | PictureError) -> bytes | PictureError:
        try:
            return self._judged(outcome)
        except PictureError as error:
            return error

    def _judged(self, outcome: bytes | PictureError) -> bytes:
        if not isinstance(outcome, PictureError):
            self._consecutive_failures = 0
            return outcome
        if outcome.reason in {Reason.FORBIDDEN, Reason.UNREACHABLE}:
            self._consecutive_failures += 1
            if self._consecutive_failures >= _IN_A_ROW and not (
                outcome.reason == Reason.FORBIDDEN and self._may_list()
            ):
                raise StorageError(
                    f"{_IN_A_ROW} pictures in a row could not be read, the last: {outcome}"
                ) from outcome
        raise outcome

    def _may_list(self) -> bool:
        """Whether the store still knows us: then it is a folder of pictures that we may not read, not our credentials.

        Asked once for every twenty pictures.
        """
        self._consecutive_failures = 0
        try:
            return self._store.exists()
        except StorageError:
            return False


def _fetch(store: Readable, limits: Limits, picture: PictureRef) -> bytes | PictureError:
    if picture.size > limits.max_bytes:
        return PictureError(
            Reason.TOO_MANY_BYTES, f"{picture.size} bytes, limit {limits.max_bytes}"
        )
    try:
        return _read(store, picture.name, picture.etag)
    except ChangedError as error:
        return PictureError(Reason.CHANGED_WHILE_READING, str(error))
    except NotFoundError as error:
        return PictureError(Reason.MISSING, str(error))
    except ForbiddenError as error:
        return PictureError(Reason.FORBIDDEN, str(error))
    except StorageError as error:
        return PictureError(Reason.UNREACHABLE, str(error))


def _read(store: Readable, name: str, etag: str) -> bytes:
    """Read once, and once more for a store whose listing ran ahead of it."""
    try:
        return store.get(name, etag)
    except ChangedError:
        return store.get(name, etag)
