"""What every store of objects can do, whether a folder or a bucket."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeAlias

from pipeline.errors import RequestError

Buffer: TypeAlias = bytes | bytearray | memoryview


class ObjectInfo(NamedTuple):
    """One listed object. `name` is relative to the listed store's root, `etag` its change mark.

    A tuple, since a listing makes ten million of them: 0.2 µs each where a frozen dataclass costs 0.5.
    """

    name: str
    uri: str
    size: int
    etag: str


class NewObject(ABC):
    """An object that is being written: nobody sees it before it is published, and then all of it."""

    @abstractmethod
    def write(self, data: Buffer) -> None:
        """Append."""

    @abstractmethod
    def publish(self, name: str) -> bool:
        """Give it its name, for good. False, and nothing changed, when the name is taken."""

    @abstractmethod
    def discard(self) -> None:
        """Forget what was written; harmless after `publish`."""


class Store(ABC):
    """Objects under one root URI. Names are relative, with forward slashes.

    Objects are written whole and only where there is none: there is no overwrite, by design.
    Any method may be called from several threads at once.
    """

    parallel_reads: ClassVar[int] = 1
    """How many reads in flight pay in one worker process. 1: read where you are, after a word ahead (`will_read`)."""

    def __init__(self, root: str) -> None:
        self.root = root

    def uri(self, name: str) -> str:
        """Absolute URI of the object `name`."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    @abstractmethod
    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below the folder `prefix`, in no particular order.

        Hidden names (a leading dot in any part) are left out. A folder that does not exist is empty.
        """

    @abstractmethod
    def get(self, name: str, etag: str | None = None) -> bytes:
        """Read one object whole; with `etag`, only if it still is the one listed under that mark.

        What a network altered on the way is noticed where the store's marks allow it, and read again.
        Raises NotFoundError, ForbiddenError, ChangedError, or StorageError after bounded retries.
        """

    @abstractmethod
    def look_up(self, name: str) -> ObjectInfo:
        """What a listing would say of one object, hidden ones included.

        Raises NotFoundError, ForbiddenError, or StorageError after bounded retries.
        """

    def get_unverified(self, name: str) -> bytes:
        """`get` for callers who know the object's hash: what a network altered may come back."""
        return self.get(name)

    @abstractmethod
    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """Write one object whole. False, and nothing written, when the name is already taken.

        A put whose reply was lost answers False to its own retry: where that matters, read the name back.
        """

    def new_object(self, folder: str) -> NewObject:
        """Begin an object below `folder`, piece by piece. Here it grows in memory and is put whole."""
        return _InMemory(self)

    def new_large_object(self, folder: str) -> NewObject:
        """As `new_object`, for one of any size: memory does not grow with it."""
        return self.new_object(folder)

    def will_read(self, name: str) -> None:  # noqa: B027  (a store may well have no use for it)
        """Say that `name` is about to be read, so that its bytes may come while something else is done."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove one object; one that is not there is no error."""

    def sweep(self, age_s: float) -> None:  # noqa: B027  (a store may well leave nothing)
        """Remove what writers that were killed more than `age_s` seconds ago left behind, unseen by `walk`."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether the root is there: a folder, or a bucket that answers. Decided within seconds.

        Raises StorageError when the store cannot be asked.
        """

    @abstractmethod
    def require_target(self) -> None:
        """Raise RequestError, within seconds, where it can be seen that nothing can be written here."""

    def local_path(self, name: str) -> Path | None:
        """Path of the object in this machine's file system, or None for a remote store."""
        return None


class _InMemory(NewObject):
    def __init__(self, store: Store) -> None:
        self._store, self._data = store, io.BytesIO()

    def write(self, data: Buffer) -> None:
        self._data.write(data)

    def publish(self, name: str) -> bool:
        return self._store.put_if_absent(name, self._data.getvalue())

    def discard(self) -> None:
        self._data.close()


def normalise(uri: str) -> str:
    """Write a location one way: `s3://bucket/key` or an absolute path, no trailing slash.

    Raises RequestError for schemes that are neither.
    """
    if uri.startswith("s3://"):
        if not uri[5:].strip("/"):
            raise RequestError(f"{uri!r} names no bucket: write s3://BUCKET/PREFIX")
        return uri.rstrip("/")
    if uri.startswith("file://"):
        uri = uri[len("file://") :]
    if "://" in uri:
        raise RequestError(f"{uri!r}: only folders and s3:// are supported")
    if not uri.strip():
        raise RequestError("an empty location was given: name a folder or s3://BUCKET/PREFIX")
    return os.path.abspath(Path(uri).expanduser())  # noqa: PTH100  (collapses `..`, which Path.absolute keeps)


def open_store(uri: str) -> Store:
    """The store rooted at `uri`. Costs no request; credentials come from the process's environment."""
    root = normalise(uri)
    if root.startswith("s3://"):
        from pipeline.storage.s3 import S3Store  # 0.4 s of imports that a folder does not need

        return S3Store(root)
    from pipeline.storage.local import LocalStore

    return LocalStore(root)
