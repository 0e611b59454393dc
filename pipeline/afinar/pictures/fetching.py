"""Reading of listed pictures: their bytes, or the reason why there are none."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeAlias

from afinar.errors import ChangedError, ForbiddenError, NotFoundError, StorageError
from afinar.pictures.decode import DEFAULT_LIMITS
from afinar.pictures.rejects import PictureError, Reason
from afinar.storage.multi_store import MultiStore
from afinar.storage.store import Reader

_MAX_CONSECUTIVE_FAILURES: Final = 20
_STORE_FAILURES: Final = {Reason.FORBIDDEN, Reason.UNREACHABLE}
_PREFETCHED: Final = 8  # files that the kernel is asked to read ahead
_MAX_AHEAD_BYTES: Final = 256 * 2**20  # of pictures read and not yet decoded, per worker


class PictureRef(NamedTuple):
    """A listed picture: name of its object below the source, etag, and size in bytes."""

    name: str
    etag: str
    size: int


_Outcome: TypeAlias = bytes | PictureError


class _PendingRead(NamedTuple):
    size: int
    read: Future[_Outcome]


class PictureReader:
    """Reader of the pictures of one unit. It tells a store that fails from pictures that do."""

    def __init__(self, store: Reader | MultiStore) -> None:
        self._store = store
        self._consecutive_failures = 0

    def read(self, picture: PictureRef) -> bytes:
        """Read one picture.

        Raises PictureError if it cannot be read, and StorageError if that happened to twenty
        pictures in a row: then the store is at fault, and the job ends.
        """
        outcome = self._fetch(picture)
        self._check_store_health(outcome)
        if isinstance(outcome, PictureError):
            raise outcome
        return outcome

    @contextmanager
    def read_ahead(
        self, pictures: Iterable[PictureRef]
    ) -> Iterator[Iterator[bytes | PictureError]]:
        """Read pictures ahead of the caller, several at a time, and return them in their order.

        Within the block, the iterator yields what `read` returns or the PictureError it raises; it
        raises StorageError as `read` does. The end of the block ends the threads. Left to the
        garbage collector, they could be ended while another thread pool's lock is held.
        """
        if self._store.parallel_reads == 1:
            yield self._read_in_sequence(pictures)
            return

        pool = ThreadPoolExecutor(self._store.parallel_reads)
        try:
            yield self._read_concurrently(pool, pictures)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read_in_sequence(self, pictures: Iterable[PictureRef]) -> Iterator[_Outcome]:
        prefetched: deque[PictureRef] = deque()
        for picture in pictures:
            self._store.prefetch(picture.name)
            prefetched.append(picture)
            if len(prefetched) > _PREFETCHED:
                yield self._checked(self._fetch(prefetched.popleft()))
        while prefetched:
            yield self._checked(self._fetch(prefetched.popleft()))

    def _read_concurrently(
        self, pool: ThreadPoolExecutor, pictures: Iterable[PictureRef]
    ) -> Iterator[_Outcome]:
        pending: deque[_PendingRead] = deque()
        pending_bytes = 0

        for picture in pictures:
            while pending and self._is_far_ahead(len(pending), pending_bytes + picture.size):
                oldest = pending.popleft()
                pending_bytes -= oldest.size
                yield self._checked(oldest.read.result())
            pending.append(_PendingRead(picture.size, pool.submit(self._fetch, picture)))
            pending_bytes += picture.size
        while pending:
            yield self._checked(pending.popleft().read.result())

    def _is_far_ahead(self, pictures: int, size: int) -> bool:
        return pictures >= 2 * self._store.parallel_reads or size > _MAX_AHEAD_BYTES

    def _checked(self, outcome: _Outcome) -> _Outcome:
        self._check_store_health(outcome)
        return outcome

    def _check_store_health(self, outcome: _Outcome) -> None:
        """Count consecutive failures of the store; raise StorageError if there are too many.

        A picture that is missing or changed is an answer of the store. For a picture over the size
        limit the store was not asked.

        Twenty forbidden pictures may be a folder that is closed to these credentials. So the store
        is asked whether it still answers them, once per twenty pictures. If it does, go on.
        """
        if isinstance(outcome, PictureError) and outcome.reason == Reason.TOO_MANY_BYTES:
            return
        if not isinstance(outcome, PictureError) or outcome.reason not in _STORE_FAILURES:
            self._consecutive_failures = 0
            return

        self._consecutive_failures += 1
        if self._consecutive_failures < _MAX_CONSECUTIVE_FAILURES:
            return
        if outcome.reason == Reason.FORBIDDEN:
            self._consecutive_failures = 0
            if self._store_answers():
                return
        raise StorageError(
            f"{_MAX_CONSECUTIVE_FAILURES} pictures in a row could not be read, the last: {outcome}"
        ) from outcome

    def _store_answers(self) -> bool:
        try:
            return self._store.exists()
        except StorageError:
            return False

    def _fetch(self, picture: PictureRef) -> _Outcome:
        """Read one picture; called by several threads at once. Returns errors, raises none."""
        limit = DEFAULT_LIMITS.max_bytes
        if picture.size > limit:
            return PictureError(Reason.TOO_MANY_BYTES, f"{picture.size} bytes, limit {limit}")
        try:
            return self._get(picture)
        except ChangedError as error:
            return PictureError(Reason.CHANGED_WHILE_READING, str(error))
        except NotFoundError as error:
            return PictureError(Reason.MISSING, str(error))
        except ForbiddenError as error:
            return PictureError(Reason.FORBIDDEN, str(error))
        except StorageError as error:
            return PictureError(Reason.UNREACHABLE, str(error))

    def _get(self, picture: PictureRef) -> bytes:
        """Get the bytes, and once more if they changed: a listing may be newer than its objects."""
        try:
            return self._store.get(picture.name, picture.etag)
        except ChangedError:
            return self._store.get(picture.name, picture.etag)
