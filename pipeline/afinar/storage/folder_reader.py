"""A folder of pictures that somebody else keeps, for reading. Symbolic links in it are followed.

Example of a walk over this tree, where `b` is a link to `z`:

    root/b -> z
    root/z/1.jpg ... 1200.jpg

The root's item adds the folder `z` and keeps the link `b` for later. The item `z` cuts its files
into batches of 500: files 1 to 500 become an item for an idle thread, as do files 501 to 1000, and
the last 200 are looked at on the spot. Then the links are walked in the order of their names. `b`
is the folder `z`, which was visited, so it is skipped and every picture is listed once, as `z/...`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from afinar.errors import ForbiddenError
from afinar.storage.files import (
    READ_FLAGS,
    as_name,
    as_text,
    etag_of,
    read_descriptor,
    require_regular,
    translate_errors,
)
from afinar.storage.left_out import LeftOut, system_label
from afinar.storage.parallel_listing import ParallelLister
from afinar.storage.store import ObjectInfo, Reader

# For folders on a network. On a local disk 16 threads take a tenth longer than one.
THREADS: Final = 16
PAGE: Final = 500
"""Files in a batch that one thread looks at (calls `stat` on)."""

_LONGEST: Final = 200  # characters of a path in a message


class _Folder(NamedTuple):
    """A folder to list: its path, and its name below the root ("" or with a trailing slash)."""

    path: str
    name: str


class _Batch(NamedTuple):
    """Files of one folder to look at."""

    folder: _Folder
    files: list[os.DirEntry[str]]


class _Walk(NamedTuple):
    """State of one walk: visited folders, links to folders that wait, counts of leftovers."""

    root: str
    visited: set[tuple[int, int]]
    links: list[_Folder]
    left_out: LeftOut


_Lister: TypeAlias = ParallelLister[_Folder | _Batch]


class FolderReader(Reader):
    """Files below a folder, for reading."""

    parallel_reads = 1

    def walk(self, prefix: str = "", left_out: LeftOut | None = None) -> Iterator[ObjectInfo]:
        """Walk the folder with several threads. Links to folders are followed, once each.

        Links wait until the folder itself is listed, and then are walked in the order of their
        names. So a picture that can be reached in two ways is listed under the same name in every
        run, whichever thread is faster. Raises ForbiddenError for a folder that cannot be entered:
        its pictures would be missing unnoticed.
        """
        walk = _Walk(self.root.rstrip("/"), set(), [], left_out or LeftOut())
        name = prefix.strip("/")
        roots = [_Folder(str(Path(self.root, name)), f"{name}/" if name else "")]

        while roots:
            list_item = partial(_list_item, walk)
            for root in sorted(roots):
                for page in ParallelLister(list_item, THREADS).pages([root]):
                    yield from page
            roots = walk.links.copy()
            walk.links.clear()

    def get(self, name: str, etag: str | None = None) -> bytes:
        """Read a file. Raises ChangedError if its size or mtime is not that of the listing."""
        # A string and a descriptor cost a third of a Path and a buffered file.
        path = f"{self.root}/{name}"
        with translate_errors(path):
            return read_descriptor(os.open(self._path(name), READ_FLAGS), path, etag)

    def stat(self, name: str) -> ObjectInfo:
        """Return the listing entry of one file. Raises NotFoundError for a folder or a pipe."""
        path = f"{self.root}/{name}"
        with translate_errors(path):
            status = os.stat(self._path(name))  # noqa: PTH116
            require_regular(status, path)
        return ObjectInfo(name, self.uri(name), status.st_size, etag_of(status))

    def prefetch(self, name: str) -> None:
        """Ask the kernel to read ahead. Reading with threads costs a quarter of a decode more."""
        with suppress(OSError):  # the error appears again, and is reported, when the file is read
            descriptor = os.open(self._path(name), READ_FLAGS)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def exists(self) -> bool:
        with translate_errors(self.root):
            return Path(self.root).is_dir()

    def _path(self, name: str) -> str:
        return f"{self.root}/{as_name(name)}"


def _list_item(walk: _Walk, item: _Folder | _Batch, lister: _Lister) -> Iterator[list[ObjectInfo]]:
    if isinstance(item, _Batch):
        yield _look_at(walk.root, item)
        return
    try:
        if _is_first_visit(item.path, walk.visited):
            yield from _list_folder(walk, item, lister)
    except FileNotFoundError:
        return  # deleted since it was found, or the prefix does not exist: empty
    except OSError as error:
        raise ForbiddenError(f"{_shortened(item.path)}: {error.strerror}") from error


def _shortened(path: str) -> str:
    """Return a path for a message: of thousands of nested folders only both ends."""
    text = as_text(path)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def _list_folder(walk: _Walk, folder: _Folder, lister: _Lister) -> Iterator[list[ObjectInfo]]:
    """Look at the files of a folder; add its subfolders to `lister`, links to them to `links`."""
    batch = _Batch(folder, [])
    with os.scandir(folder.path) as entries:
        for entry in entries:
            if (label := system_label(entry.name)) is not None:
                walk.left_out.add(label)
                continue
            if _is_folder(entry):
                below = _Folder(f"{folder.path}/{entry.name}", f"{folder.name}{entry.name}/")
                if entry.is_symlink():
                    walk.links.append(below)
                else:
                    lister.add(below)
                continue

            batch.files.append(entry)
            if len(batch.files) == PAGE:
                if lister.has_idle_threads:
                    lister.add(batch)
                else:  # all threads are busy, and the pending batches must not grow
                    yield _look_at(walk.root, batch)
                batch = _Batch(folder, [])
    yield _look_at(walk.root, batch)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return False for a link that leads nowhere or to itself: it is listed as a file."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_first_visit(folder: str, visited: set[tuple[int, int]]) -> bool:
    status = os.stat(folder)  # noqa: PTH116
    identity = (status.st_dev, status.st_ino)
    if identity in visited:
        return False
    visited.add(identity)
    return True


def _look_at(root: str, batch: _Batch) -> list[ObjectInfo]:
    """Return the listing entries of some files: `stat` on each, which is what waits for a network.

    A file that `stat` fails on is listed too, with an etag that no read can match.
    """
    page = []
    name = as_text(batch.folder.name)
    folder = f"{root}/{name}"
    for entry in batch.files:
        file = as_text(entry.name)
        try:
            status = entry.stat()
        except OSError:
            page.append(ObjectInfo(name + file, folder + file, 0, "unreadable"))
            continue
        if stat.S_ISREG(status.st_mode):
            page.append(ObjectInfo(name + file, folder + file, status.st_size, etag_of(status)))

    return page
