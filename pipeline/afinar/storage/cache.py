"""Cache of remote objects: verified copies on this machine, shared by its processes.

Its folder also holds notes: which local files were verified, and what was measured once.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Final, NamedTuple

from afinar.errors import NotFoundError, RequestError
from afinar.storage.files import translate_errors
from afinar.storage.objects import ObjectRef, check_hash, get_object, sha256
from afinar.storage.store import Store

_SCRATCH: Final = "new-"
_NOTE: Final = "note-"
_NOTE_BYTES: Final = 4096  # of the largest note
# The time of a change is that of the kernel's last tick, and of some file systems the last second.
_SETTLED_S: Final = 2.0
_CHECK_THREADS: Final = 4  # each hashes 1 to 2 GB a second
DEFAULT_BYTES: Final = 32 * 2**30


@dataclass(frozen=True)
class Cache:
    """A folder of copies and its limit in bytes. None: this user's folder in the temporary one.

    The copies that were opened longest ago are evicted first. A process that has a copy open can
    read it after that.
    """

    folder: Path | None = None
    bytes: int = DEFAULT_BYTES

    @property
    def path(self) -> Path:
        return self.folder or Path(tempfile.gettempdir(), f"afinar-cache-{os.getuid()}")

    @contextmanager
    def open(self) -> Iterator[int]:
        """Create the folder if it is missing and yield a descriptor of it.

        Another user may have taken its name in the temporary folder first. So it must be a folder
        and no link, belong to this user, and be closed to others. Raises RequestError if it is not.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(
                self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError as error:
            raise RequestError(
                f"the cache {self.path} is a link, no folder, or cannot be made "
                f"({error.strerror}): {_REMEDY}"
            ) from error

        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.getuid():
                raise RequestError(
                    f"the cache {self.path} belongs to another user "
                    f"(uid {status.st_uid}): {_REMEDY}"
                )
            if mode := stat.S_IMODE(status.st_mode) & 0o077:
                raise RequestError(
                    f"other users may enter the cache {self.path} (mode has {mode:03o}): {_REMEDY}"
                )
            yield descriptor
        finally:
            os.close(descriptor)


_REMEDY: Final = "remove it or make it yours with mode 700, or set TMPDIR to a folder of your own"


class BackgroundChecks:
    """Hashes of files that threads compare while the files are used. Thread-safe."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(_CHECK_THREADS, os.cpu_count() or 1))
        self._lock = Lock()
        self._running: set[Future[None]] = set()
        self._failed: Exception | None = None

    def start(self, check: Callable[[], None]) -> None:
        """Let a thread call `check`, which raises for a damaged file."""
        with self._lock:
            future = self._pool.submit(check)
            self._running.add(future)
        future.add_done_callback(self._note_end)

    def _note_end(self, future: Future[None]) -> None:
        with self._lock:
            self._running.discard(future)
            error = future.exception()
            if isinstance(error, Exception):
                self._failed = self._failed or error

    def raise_failed(self) -> None:
        """Raise the error of a check that has failed so far."""
        if self._failed is not None:
            raise self._failed

    def wait(self) -> None:
        """Wait for all checks that were started; raise the error of one that failed."""
        with self._lock:
            running = list(self._running)
        wait(running)
        for future in running:
            future.result()
        self.raise_failed()


def open_verified(
    store: Store,
    ref: ObjectRef,
    cache: Cache,
    start_check: Callable[[Callable[[], None]], None] | None = None,
) -> BinaryIO:
    """Open an object as a file: the object itself in a folder, else a copy, fetched into the cache.

    The descriptor reads the verified bytes, even if the name is given to another file later. A file
    in a folder is hashed once per machine, and again after it was changed. With `start_check` it is
    not hashed here: that function is called with one that does.

    Several processes may call this at once for one object; one of them fetches it. The caller
    closes the file. Raises IntegrityError if the bytes are not the committed ones.
    """
    try:
        file = store.open_local(ref.path)
    except NotFoundError:
        raise NotFoundError(
            f"{store.uri(ref.path)} is missing, but a version names it: restore it from a backup"
        ) from None

    if file is None:
        return _open_copy(store, ref, cache)
    try:
        check = _pending_check(file, ref, store, cache)
        if check is not None:
            check() if start_check is None else start_check(check)
    except BaseException:
        file.close()
        raise
    return file


def _pending_check(
    file: BinaryIO, ref: ObjectRef, store: Store, cache: Cache
) -> Callable[[], None] | None:
    """Return what compares a local file's hash with the committed one, if it must be compared.

    To hash a picture of 224 px costs ten times as much as to copy it. So a note remembers which
    file had this hash: its device, inode, size and times. The kernel sets the time of the last
    change (ctime), and no user can set it back: after any change of the file it is hashed again.
    """
    identity = _identity(file.fileno())
    name = f"verified-{ref.sha256}"
    if read_note(cache, name) == identity:
        return None
    # The file may be closed when the check runs.
    descriptor, data = os.dup(file.fileno()), map_file(file)

    def check() -> None:
        try:
            started_s = time.time()
            check_hash(data, ref, store)
            # A file that changes twice within one tick of the clock has the same ctime after both.
            is_settled = os.fstat(descriptor).st_ctime < started_s - _SETTLED_S
            if is_settled and _identity(descriptor) == identity:
                write_note(cache, name, identity)
        finally:
            os.close(descriptor)

    return check


def _identity(descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    numbers = (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    return " ".join(map(str, numbers)).encode()


def read_note(cache: Cache, name: str) -> bytes | None:
    """Return what a process of this machine has noted under a name; None if there is no note.

    A note saves work that can be done again. So a cache that cannot be used has no notes.
    """
    with (
        suppress(OSError, RequestError),
        cache.open() as folder,
        os.fdopen(_open(_NOTE + name, folder, os.O_RDONLY), "rb") as file,
    ):
        return file.read(_NOTE_BYTES)
    return None


def write_note(cache: Cache, name: str, data: bytes) -> None:
    """Note something under a name for later processes of this machine; see `read_note`."""
    scratch = f"{_SCRATCH}{uuid.uuid4().hex}"
    with (
        suppress(OSError, RequestError),
        cache.open() as folder,
        _create_locked(scratch, folder) as file,
    ):
        file.write(data)
        file.flush()
        os.replace(scratch, _NOTE + name, src_dir_fd=folder, dst_dir_fd=folder)


def map_file(file: BinaryIO) -> memoryview:
    """Map a whole file into memory, read-only. The map stays valid when the file is closed."""
    if not os.fstat(file.fileno()).st_size:
        return memoryview(b"")  # an empty file cannot be mapped
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _open_copy(store: Store, ref: ObjectRef, cache: Cache) -> BinaryIO:
    with (
        cache.open() as folder,
        translate_errors(str(cache.path)),
        _file_lock(folder, f"lock-{ref.sha256[:2]}"),
    ):
        file = _open_verified_copy(folder, ref)
        if file is None:
            data = get_object(store, ref)
            # Room for two objects at least: the one before this may be in use.
            limit = max(cache.bytes, 2 * len(data)) - len(data)
            _evict_lru(folder, limit, keep=ref.sha256)
            file = _write_copy(folder, ref.sha256, data)
        return file


def _open_verified_copy(folder: int, ref: ObjectRef) -> BinaryIO | None:
    """Open the copy of an object and mark it as used; None if it is missing or damaged."""
    try:
        file = os.fdopen(_open(ref.sha256, folder, os.O_RDONLY), "rb")
    except OSError:  # no copy, or a link
        return None
    if sha256(map_file(file)) == ref.sha256:
        os.utime(file.fileno())
        return file
    file.close()
    return None


def _write_copy(folder: int, name: str, data: bytes) -> BinaryIO:
    scratch = f"{_SCRATCH}{uuid.uuid4().hex}"
    file = _create_locked(scratch, folder)
    try:
        file.write(data)
        file.flush()
        os.replace(scratch, name, src_dir_fd=folder, dst_dir_fd=folder)
        fcntl.flock(file, fcntl.LOCK_UN)
    except BaseException:
        file.close()
        with suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=folder)
        raise
    file.seek(0)

    return file


def _create_locked(name: str, folder: int) -> BinaryIO:
    """Create a file and lock it, which shows other processes that its writer is alive."""
    while True:
        file = os.fdopen(_open(name, folder, os.O_RDWR | os.O_CREAT | os.O_EXCL), "w+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another process deleted it before it was locked


def _delete_abandoned(name: str, folder: int) -> bool:
    """Delete a file that a killed writer left; return False if its writer is alive."""
    try:
        with os.fdopen(_open(name, folder, os.O_RDWR), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=folder)
    except BlockingIOError:
        return False
    except OSError:  # a link, or another process has deleted or published it
        pass
    return True


def _open(name: str, folder: int, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)


@contextmanager
def _file_lock(folder: int, name: str) -> Iterator[None]:
    """Hold a lock among this machine's processes: one fetches an object, the others wait."""
    with os.fdopen(_open(name, folder, os.O_RDWR | os.O_CREAT), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, or its process dies
        yield


class _Copy(NamedTuple):
    """A copy in the cache, ordered by the time of its last use."""

    used_s: float
    size_bytes: int
    name: str


def _evict_lru(folder: int, max_bytes: int, keep: str) -> None:
    """Delete the least recently used copies until all but `keep` take at most `max_bytes`.

    Unfinished copies count too. Those of killed writers are deleted, those of living ones are kept.
    """
    copies, total_bytes = [], 0
    for name in os.listdir(folder):
        is_unfinished = name.startswith(_SCRATCH)
        if name == keep or name.startswith(("lock-", _NOTE)):
            continue
        if is_unfinished and _delete_abandoned(name, folder):
            continue
        with suppress(FileNotFoundError):  # another process evicted it
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                total_bytes += status.st_size
                if not is_unfinished:
                    copies.append(_Copy(status.st_mtime, status.st_size, name))

    for copy in sorted(copies):
        if total_bytes <= max_bytes:
            return
        with suppress(FileNotFoundError):
            os.unlink(copy.name, dir_fd=folder)
        total_bytes -= copy.size_bytes
