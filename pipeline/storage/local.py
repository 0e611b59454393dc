"""A folder as a store."""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

from pipeline.errors import ChangedError, ForbiddenError, NotFoundError, RequestError, StorageError
from pipeline.storage.store import Buffer, NewObject, ObjectInfo, Store
from pipeline.storage.walking import Walk

_SCRATCH = ".tmp-"
_THREADS = 16  # for folders on a network; on a local disk they cost a tenth more than one, and gain nothing
_PAGE = 500  # files looked at in one go

_Folder: TypeAlias = tuple[str, str]  # path, name below the root with a trailing slash
_Entries: TypeAlias = tuple[str, str, list[os.DirEntry[str]]]  # path and name of their folder, files in it


class LocalStore(Store):
    """Objects are files; put-if-absent is a hard link, which POSIX makes atomic and exclusive."""

    parallel_reads = 1

    def _path(self, name: str) -> Path:
        return Path(self.root, name)

    def local_path(self, name: str) -> Path:
        """Path of the object."""
        return self._path(name)

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Walk the folder with several threads; links to folders are followed, once each.

        Links wait until all that lies in the folder itself is listed, and then go by their names: which of two
        ways to one picture is listed must not depend on which thread was quicker.
        Raises ForbiddenError for a folder that cannot be entered: its pictures would be missing unnoticed.
        """
        visited: set[tuple[int, int]] = set()
        roots = [(str(self._path(prefix)), f"{prefix.strip('/')}/" if prefix.strip("/") else "")]
        while roots:
            links: list[_Folder] = []
            for root in sorted(roots):
                for page in Walk(partial(_visit, visited, links), _THREADS).pages([root]):
                    yield from page
            roots = links

    def get(self, name: str, etag: str | None = None) -> bytes:
        """Read a file; a change of size or mtime before or while reading is a ChangedError."""
        path = f"{self.root}/{name}"  # strings and an unbuffered file: a third of what Path and a buffer cost
        with _translated(path), open(path, "rb", buffering=0) as file:  # noqa: PTH123
            data = file.readall()
            status = os.fstat(file.fileno())
            # Marks have the grain of the kernel's clock, 4 ms: a file being rewritten may have its old one back.
            if etag is not None and (_mark(status) != etag or len(data) != status.st_size):
                raise ChangedError(f"{path} changed since it was listed")
            return data

    def look_up(self, name: str) -> ObjectInfo:
        """Look at one file; a folder or a pipe is none."""
        path = f"{self.root}/{name}"
        with _translated(path):
            status = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            raise NotFoundError(f"{path} is not a file")
        return ObjectInfo(name, self.uri(name), status.st_size, _mark(status))

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """Write beside the target, then link into place: a reader sees all of it or nothing."""
        new = self.new_object(os.path.dirname(name))  # noqa: PTH120
        try:
            new.write(data)
            return new.publish(name)
        finally:
            new.discard()

    def new_object(self, folder: str) -> NewObject:
        """Begin a file beside those of `folder`, under a hidden name."""
        return _Scratch(self, folder)

    def will_read(self, name: str) -> None:
        """Ask the kernel to begin reading. Threads that read ahead cost a quarter of a decode in switching."""
        with suppress(OSError):  # whoever reads it will find out, and say so
            descriptor = os.open(f"{self.root}/{name}", os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def delete(self, name: str) -> None:
        """Remove a file."""
        with _translated(self.uri(name)):
            self._path(name).unlink(missing_ok=True)

    def sweep(self, age_s: float) -> None:
        """Remove scratch files that nobody has written to for so long."""
        for path in Path(self.root).rglob(f"{_SCRATCH}*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > age_s:
                    path.unlink()

    def exists(self) -> bool:
        """Whether the folder is there."""
        return Path(self.root).is_dir()

    def require_target(self) -> None:
        """The folder, or the nearest one above it, must be a folder we may write to."""
        root = Path(self.root)
        nearest = next(path for path in (root, *root.parents) if path.exists())
        if not nearest.is_dir():
            raise RequestError(f"cannot write to {root}: {nearest} is a file. Choose another target.")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise RequestError(f"cannot write to {root}: no permission in {nearest}. Choose another target.")


class _Scratch(NewObject):
    def __init__(self, store: LocalStore, folder: str) -> None:
        self._store = store
        self._path = store.local_path(f"{folder}/{_SCRATCH}{uuid.uuid4().hex}")
        with _translated(str(self._path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb", buffering=0)

    def write(self, data: Buffer) -> None:
        rest = memoryview(data).cast("B")
        with _translated(str(self._path)):
            while len(rest):
                rest = rest[self._file.write(rest) :]  # one call writes 2 GB at most

    def publish(self, name: str) -> bool:
        target = self._store.local_path(name)
        with _translated(self._store.uri(name)):
            os.fsync(self._file.fileno())
            self._file.close()
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self._path, target)
            except FileExistsError:
                return False
        return True

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def _visit(
    visited: set[tuple[int, int]], links: list[_Folder], item: _Folder | _Entries, walk: Walk[_Folder | _Entries]
) -> Iterator[list[ObjectInfo]]:
    """List one folder, or some of its files. Looking at files is handed out, since it is what waits on a network."""
    folder, name = item[0], item[1]
    if len(item) == 3:
        yield _infos(folder, name, item[2])
        return
    try:
        if not _first_visit(folder, visited):
            return
        with os.scandir(folder) as entries:
            files: list[os.DirEntry[str]] = []
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if entry.is_dir():
                    below = (f"{folder}/{entry.name}", f"{name}{entry.name}/")
                    links.append(below) if entry.is_symlink() else walk.add(below)
                    continue
                files.append(entry)
                if len(files) == _PAGE:
                    if walk.hungry:
                        walk.add((folder, name, files))
                    else:  # the others are busy; what is pending must not grow
                        yield _infos(folder, name, files)
                    files = []
    except FileNotFoundError:
        return  # gone since it was seen, or never there: empty
    except OSError as error:
        raise ForbiddenError(f"cannot list {folder}: {error.strerror}") from error
    yield _infos(folder, name, files)


def _first_visit(folder: str, visited: set[tuple[int, int]]) -> bool:
    status = os.stat(folder)  # noqa: PTH116
    mark = (status.st_dev, status.st_ino)
    if mark in visited:
        return False
    visited.add(mark)
    return True


def _infos(folder: str, name: str, entries: list[os.DirEntry[str]]) -> list[ObjectInfo]:
    """Files as listed. One that cannot be looked at is listed too, and found out when it is read."""
    found = []
    folder, name = _as_text(folder), _as_text(name)
    for entry in entries:
        file = _as_text(entry.name)
        try:
            status = entry.stat()
        except OSError:
            found.append(ObjectInfo(name + file, f"{folder}/{file}", 0, "unreadable"))
            continue
        if stat.S_ISREG(status.st_mode):
            found.append(ObjectInfo(name + file, f"{folder}/{file}", status.st_size, _mark(status)))
    return found


def _as_text(name: str) -> str:
    """Names that are not UTF-8 cannot stand in a table; escaped, they are listed and rejected as missing."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _mark(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from error
    except PermissionError as error:
        raise ForbiddenError(f"{path}: {error.strerror}") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageError(f"{path} could not be written: no space left there. Free some and run again.") from error
        raise StorageError(f"{path}: {error.strerror or error}") from error
