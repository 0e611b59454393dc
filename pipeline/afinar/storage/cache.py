"""Verified copies of remote objects on this machine, shared by its processes and bounded in bytes."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from afinar.errors import NotFoundError, RequestError
from afinar.storage.objects import ObjectRef, check_hash, get_object, sha256
from afinar.storage.store import Store

DEFAULT_BYTES: Final = 32 * 2**30


@dataclass(frozen=True)
class Cache:
    """Where copies lie (None: a folder of the user's own in the temporary folder), and how much they may take.

    Files that went longest without being opened are removed first. A process that has one open keeps
    its bytes for as long as it does.
    """

    folder: Path | None = None
    bytes: int = DEFAULT_BYTES

    @property
    def path(self) -> Path:
        """The folder of the copies."""
        return self.folder or Path(tempfile.gettempdir(), f"afinar-cache-{os.getuid()}")

    @contextmanager
    def open(self) -> Iterator[int]:
        """Yield a descriptor of the folder, which is made where it is missing.

        The name in the temporary folder can be taken by anybody first, and what lies in the folder is believed. So it
        must be a folder, no link, ours, and nobody else's to enter. Raises RequestError where it is not.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(
                self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError as error:
            raise RequestError(f"the cache {self.path} is a link or no folder: {_MEND}") from error
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.getuid():
                raise RequestError(
                    f"the cache {self.path} belongs to another user (uid {status.st_uid}): {_MEND}"
                )
            if mode := stat.S_IMODE(status.st_mode) & 0o077:
                raise RequestError(
                    f"other users may enter the cache {self.path} (mode has {mode:03o}): {_MEND}"
                )
            yield descriptor
        finally:
            os.close(descriptor)


_MEND: Final = "remove it or make it yours with mode 700, or set TMPDIR to a folder of your own"


def open_verified(store: Store, ref: ObjectRef, cache: Cache) -> BinaryIO:
    """Open an object on this machine: the object itself in a folder, else a copy that is fetched into the cache.

    What the descriptor reads is what was verified, whatever happens to the name. Safe to call from several processes
    at once: one of them fetches. The caller closes the file. Raises IntegrityError when the bytes are not those that
    were committed.
    """
    try:
        file = store.open_local(ref.path)
    except NotFoundError:
        raise NotFoundError(
            f"{store.uri(ref.path)} is gone, which a version names: restore it from a backup"
        ) from None
    if file is None:
        return _open_copy(store, ref, cache)
    try:
        check_hash(map_file(file), ref, store)
    except BaseException:
        file.close()
        raise
    return file


def map_file(file: BinaryIO) -> memoryview:
    """Map a whole file into memory, to be read: uint8 of its size. The map outlives the file."""
    if not os.fstat(file.fileno()).st_size:
        return memoryview(b"")  # nothing cannot be mapped
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _open_copy(store: Store, ref: ObjectRef, cache: Cache) -> BinaryIO:
    with cache.open() as folder, _lock(folder, f"lock-{ref.sha256[:2]}"):
        file = _open_if_whole(folder, ref)
        if file is None:
            data = get_object(store, ref)
            _evict_lru(folder, max(cache.bytes, 2 * len(data)) - len(data), ref.sha256)
            file = _write_copy(folder, ref.sha256, data)
        return file


def _open_if_whole(folder: int, ref: ObjectRef) -> BinaryIO | None:
    """Open the copy, if there is one with the right hash, and count it as used."""
    try:
        file = os.fdopen(_open(ref.sha256, folder, os.O_RDONLY), "rb")
    except OSError:  # none, or a link
        return None
    if sha256(map_file(file)) == ref.sha256:
        os.utime(file.fileno())
        return file
    file.close()
    return None


def _write_copy(folder: int, name: str, data: bytes) -> BinaryIO:
    scratch = f"new-{uuid.uuid4().hex}"
    file = os.fdopen(_open(scratch, folder, os.O_RDWR | os.O_CREAT | os.O_EXCL), "w+b")
    try:
        file.write(data)
        file.flush()
        os.replace(scratch, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        file.close()
        with suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=folder)
        raise
    file.seek(0)
    return file


def _open(name: str, folder: int, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)


@contextmanager
def _lock(folder: int, name: str) -> Iterator[None]:
    """Let one process of this machine in at a time, so that several that want one shard fetch it once."""
    with os.fdopen(_open(name, folder, os.O_RDWR | os.O_CREAT), "rb") as file:
        fcntl.flock(
            file, fcntl.LOCK_EX
        )  # released when the file is closed, by the death of its process too
        yield


def _evict_lru(folder: int, most: int, coming: str) -> None:
    """Remove the copies that were opened longest ago until the rest take at most `most` bytes."""
    found = []
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # another process made room
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if (
                stat.S_ISREG(status.st_mode)
                and name != coming
                and not name.startswith(("new-", "lock-"))
            ):
                found.append((status.st_mtime, status.st_size, name))
    total = sum(size for _, size, _ in found)
    for _, size, name in sorted(found):
        if total <= most:
            return
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        total -= size
