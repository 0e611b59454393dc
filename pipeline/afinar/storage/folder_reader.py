"""A folder of pictures that somebody else keeps, for reading. Symbolic links in it are followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

from afinar.errors import ForbiddenError
from afinar.storage.files import (
    READ_FLAGS,
    as_text,
    etag_of,
    read_descriptor,
    require_regular,
    translate_errors,
)
from afinar.storage.parallel_listing import ParallelLister
from afinar.storage.store import ObjectInfo, Reader

THREADS = 16  # for folders on a network; on a local disk they cost a tenth more than one, and gain nothing
PAGE = 500  # files looked at in one go

_Folder: TypeAlias = tuple[str, str]  # path, name below the root with a trailing slash
_Entries: TypeAlias = tuple[
    str, str, list[os.DirEntry[str]]
]  # path and name of their folder, files in it


class FolderReader(Reader):
    """Files below a folder, for reading."""

    parallel_reads = 1

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Walk the folder with several threads; links to folders are followed, once each.

        Links wait until all that lies in the folder itself is listed, and then go by their names: which of two
        ways to one picture is listed must not depend on which thread was quicker.
        Raises ForbiddenError for a folder that cannot be entered: its pictures would be missing unnoticed.
        """
        visited: set[tuple[int, int]] = set()
        name = prefix.strip("/")
        roots = [(str(Path(self.root, name)), f"{name}/" if name else "")]
        while roots:
            links: list[_Folder] = []
            for root in sorted(roots):
                for page in ParallelLister(partial(_visit, visited, links), THREADS).pages([root]):
                    yield from page
            roots = links

    def get(self, name: str, etag: str | None = None) -> bytes:
        """Read a file; a change of size or mtime before or while reading is a ChangedError."""
        path = f"{self.root}/{name}"  # strings and a descriptor: a third of what Path and a buffered file cost
        with translate_errors(path):
            return read_descriptor(os.open(path, READ_FLAGS), path, etag)

    def stat(self, name: str) -> ObjectInfo:
        """Look at one file; a folder or a pipe is none."""
        path = f"{self.root}/{name}"
        with translate_errors(path):
            status = os.stat(path)  # noqa: PTH116
            require_regular(status, path)
        return ObjectInfo(name, self.uri(name), status.st_size, etag_of(status))

    def prefetch(self, name: str) -> None:
        """Ask the kernel to begin reading. Threads that read ahead cost a quarter of a decode in switching."""
        with suppress(OSError):  # whoever reads it will find out, and say so
            descriptor = os.open(f"{self.root}/{name}", READ_FLAGS)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def exists(self) -> bool:
        """Return True if the folder is there."""
        return Path(self.root).is_dir()


def _visit(
    visited: set[tuple[int, int]],
    links: list[_Folder],
    item: _Folder | _Entries,
    walk: ParallelLister[_Folder | _Entries],
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
                if len(files) == PAGE:
                    if walk.has_idle_threads:
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
    folder, name = as_text(folder), as_text(name)
    for entry in entries:
        file = as_text(entry.name)
        try:
            status = entry.stat()
        except OSError:
            found.append(ObjectInfo(name + file, f"{folder}/{file}", 0, "unreadable"))
            continue
        if stat.S_ISREG(status.st_mode):
            found.append(
                ObjectInfo(name + file, f"{folder}/{file}", status.st_size, etag_of(status))
            )
    return found
