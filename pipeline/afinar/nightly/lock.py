"""The lock of a series of nights: numbered lease records, of which the highest is current.

    lock/00000007.json    {"owner": "3f…", "expires": "2026-11-26T02:10:00+00:00", …}
    lock/00000008.json    {"owner": "3f…", "expires": "2026-11-26T02:13:20+00:00", …}   renewed
    lock/00000009.json    {"owner": "3f…", "released": true, …}

A record is put only if its number is free. So of two nights that start at once one gets number 7.
The holder renews its lease after a third of its length. If it dies, the lease expires, and the
next night takes over with the next number; then the renewal of a holder that was only suspended
finds its number taken.

**Fencing.** A holder may be suspended between a check of its lease and a write. So nothing is
published by the check alone: each alias is moved by a put-if-absent record whose number follows the
record that this night has read, and a night that takes over rewrites every alias first (see
`nightly.night`). The late write of the former holder then finds its number taken.

Clocks of different machines are compared. A lease is therefore taken over only `_CLOCK_SKEW_S`
after it has expired.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, TypeVar

from afinar.errors import AfinarError, StorageError
from afinar.storage.records import as_record
from afinar.storage.store import Store
from afinar.storage.versions import current_actor, latest, new_owner, publish, record_name, versions
from afinar.units.executor import Executor, RetryPolicy

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

FOLDER: Final = "lock"

_CLOCK_SKEW_S: Final = 5.0
_KEPT_RECORDS: Final = 20  # older ones are deleted by the holder


class LockHeldError(AfinarError):
    """Another night holds the lock (exit code 3)."""

    exit_code = 3


class LeaseLostError(AfinarError):
    """Another night has taken the lock over: this one must not publish any more."""


def _time(value: str) -> str:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError(f"{value[:50]!r} has no time zone")
    return value


Time = Annotated[str, _time]
"""A moment with its time zone, ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class LeaseRecord:
    """One record of the lock. `owner` is a random token of the holder, `actor` its USER@HOST."""

    owner: str
    actor: str
    acquired: Time
    expires: Time
    released: bool = False


class Lease:
    """The lock as this process holds it.

    `takeover` is True if the former holder has not released the lock.
    """

    def __init__(
        self, store: Store, number: int, record: LeaseRecord, length_s: float, *, takeover: bool
    ) -> None:
        self.takeover = takeover
        self._store, self._number, self._record = store, number, record
        self._length_s = length_s
        self._mutex = threading.Lock()
        self._lost: str = ""

    def require(self) -> None:
        """Raise LeaseLostError unless the store says that this process holds the lock.

        Call it before each publication: a process that was suspended does not know that its lease
        has expired.
        """
        with self._mutex:
            if not self._lost:
                self._lost = self._reason_lost()
            if self._lost:
                raise LeaseLostError(self._lost)

    def renew(self) -> None:
        """Put the next record, with a later end. Raises LeaseLostError if its number is taken."""
        with self._mutex:
            if self._lost:
                raise LeaseLostError(self._lost)
            record = _with_end(self._record, self._length_s)
            if not publish(self._store, FOLDER, self._number + 1, asdict(record), record.owner):
                self._lost = self._reason_lost() or "the lock was taken over by another night"
                raise LeaseLostError(self._lost)
            self._number, self._record = self._number + 1, record

    def release(self) -> None:
        """Put a record that frees the lock, and delete old records. Does nothing if it is lost."""
        with self._mutex:
            if self._lost:
                return
            record = replace(self._record, released=True)
            publish(self._store, FOLDER, self._number + 1, asdict(record), record.owner)
            for number in versions(self._store, FOLDER)[:-_KEPT_RECORDS]:
                self._store.delete(record_name(FOLDER, number))

    def _reason_lost(self) -> str:
        """Return why the lock is lost, or an empty text."""
        current = latest(self._store, FOLDER)
        record = None if current is None else _as_lease(self._store, *current)
        if record is None or record.owner != self._record.owner:
            other = "nobody" if record is None else f"{record.actor} since {record.acquired}"
            return (
                f"this night was suspended for longer than its lease, and the lock is held by "
                f"{other}: it publishes nothing"
            )
        return ""


class LeasedExecutor:
    """An executor after whose units the lock must still be held: the driver publishes then."""

    def __init__(self, executor: Executor, lease: Lease) -> None:
        self._executor, self._lease = executor, lease

    def run(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        policy: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """Yield results. Raises LeaseLostError after the last if the lock was lost."""
        yield from self._executor.run(make_work, tasks, policy)
        self._lease.require()


@contextmanager
def hold_lock(store: Store, length_s: float) -> Iterator[Lease]:
    """Hold the lock of `store` within the block, with a lease of `length_s` seconds.

    A thread renews the lease after each third of its length. Raises LockHeldError if another
    process holds the lock.
    """
    lease = acquire(store, length_s)
    ended = threading.Event()
    renewer = threading.Thread(
        target=_renew_until, args=(lease, ended, length_s / 3), name="lease", daemon=True
    )
    renewer.start()
    try:
        yield lease
    finally:
        ended.set()
        renewer.join()
        lease.release()


def acquire(store: Store, length_s: float) -> Lease:
    """Acquire the lock. Raises LockHeldError if its lease has neither expired nor been released."""
    current = latest(store, FOLDER)
    before = None if current is None else _as_lease(store, *current)
    if before is not None and not _is_free(before):
        raise _held(before)

    owner = new_owner()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = LeaseRecord(owner=owner, actor=current_actor(), acquired=now, expires=now)
    record = _with_end(record, length_s)
    number = 1 if current is None else current[0] + 1
    if not publish(store, FOLDER, number, asdict(record), owner):
        winner = latest(store, FOLDER)
        assert winner is not None, "the record that took the number is there"
        raise _held(_as_lease(store, *winner))

    is_takeover = before is not None and not before.released
    if before is not None and is_takeover:
        logger.info(f"the night of {before.actor} ended without releasing the lock: taken over")
    return Lease(store, number, record, length_s, takeover=is_takeover)


def _renew_until(lease: Lease, ended: threading.Event, interval_s: float) -> None:
    """Renew a lease until `ended` is set or the lock is lost. A store that fails is tried again."""
    while not ended.wait(interval_s):
        try:
            lease.renew()
        except LeaseLostError as error:
            logger.error(str(error))
            return
        except StorageError as error:
            logger.warning(f"the lease of the lock was not renewed, it is tried again: {error}")


def _is_free(record: LeaseRecord) -> bool:
    end = datetime.fromisoformat(record.expires) + timedelta(seconds=_CLOCK_SKEW_S)
    return record.released or datetime.now(UTC) > end


def _with_end(record: LeaseRecord, length_s: float) -> LeaseRecord:
    end = datetime.now(UTC) + timedelta(seconds=length_s)
    return replace(record, expires=end.isoformat(timespec="milliseconds"))


def _held(record: LeaseRecord) -> LockHeldError:
    return LockHeldError(
        f"another night holds the lock: {record.actor} since {record.acquired}, until "
        f"{record.expires} unless it goes on. Run the command again when it has ended."
    )


def _as_lease(store: Store, number: int, record: dict[str, object]) -> LeaseRecord:
    return as_record(record, LeaseRecord, store.uri(record_name(FOLDER, number)))
