"""Verified copies of remote objects on this machine, shared by its processes and bounded in bytes."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import NotFoundError
from pipeline.storage.objects import ObjectRef, check_hash, get_object, sha256
from pipeline.storage.store import Store

DEFAULT_BYTES: Final = 32 * 2**30


@dataclass(frozen=True)
class Cache:
    """Where copies lie (None: a folder of the user's own in the temporary folder), and how much they may take.

    Files that went longest without being opened are removed first. A process that has one mapped keeps
    its bytes for as long as it does.
    """

    folder: Path | None = None
    bytes: int = DEFAULT_BYTES

    def open(self) -> Path:
        """The folder, made where it is missing."""
        folder = self.folder or Path(tempfile.gettempdir(), f"afinar-cache-{os.getuid()}")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder


def local_copy(store: Store, ref: ObjectRef, cache: Cache) -> Path:
    """Path of a verified copy on this machine: the object itself in a folder, else fetched into the cache.

    Safe to call from several processes at once: one of them fetches. Raises IntegrityError when the bytes are
    not those that were committed.
    """
    path = store.local_path(ref.path)
    if path is not None:
        try:
            check_hash(path.read_bytes(), ref, store)
        except FileNotFoundError:
            raise NotFoundError(f"{path} is gone, which a version names: restore it from a backup") from None
        return path
    folder = cache.open()
    target = folder / ref.sha256
    with _alone(folder / f"lock-{ref.sha256[:2]}"):
        if _holds(target, ref):
            os.utime(target)
            return target
        data = get_object(store, ref)
        _make_room(folder, max(cache.bytes, 2 * len(data)) - len(data), target.name)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="new-", delete=False) as scratch:
            scratch.write(data)
        Path(scratch.name).replace(target)
    return target


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process of this machine at a time, so that several that want one shard fetch it once."""
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go of when the file is closed, by the death of its process too
        yield


def _holds(path: Path, ref: ObjectRef) -> bool:
    try:
        return sha256(path.read_bytes()) == ref.sha256
    except FileNotFoundError:
        return False


def _make_room(folder: Path, most: int, coming: str) -> None:
    """Remove the copies that were opened longest ago until the rest take at most `most` bytes."""
    found = []
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # another process made room
        if path.name != coming and not path.name.startswith(("new-", "lock-")):
            found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
