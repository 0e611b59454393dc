"""What every store of objects can do, whether a folder or a bucket."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import BinaryIO, ClassVar, NamedTuple, TypeAlias

from afinar.storage.names import split_name

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


class Reader(ABC):
    """Objects under one root URI, for reading: a source of pictures that somebody else keeps, or the base of a store.

    Names are relative, with forward slashes. A reader of a folder follows symbolic links and takes any name.
    Any method may be called from several threads at once.
    """

    parallel_reads: ClassVar[int] = 1
    """Useful number of concurrent reads per process. 1: read sequentially after calling `prefetch`."""
    is_remote: ClassVar[bool] = False
    """True if objects do not lie in this machine's file system."""

    def __init__(self, root: str) -> None:
        self.root = root

    def uri(self, name: str) -> str:
        """Return the absolute URI of the object `name`."""
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
    def stat(self, name: str) -> ObjectInfo:
        """Return what a listing would say of one object, hidden ones included.

        Raises NotFoundError, ForbiddenError, or StorageError after bounded retries.
        """

    def prefetch(self, name: str) -> None:  # noqa: B027  (a store may well have no use for it)
        """Announce that `name` is about to be read, so that its bytes may come while something else is done."""

    @abstractmethod
    def exists(self) -> bool:
        """Return True if the root is there: a folder, or a bucket that answers. Decided within seconds.

        Raises StorageError when the store cannot be asked.
        """


class Store(Reader):
    """Objects under one root URI that are ours to write: a dataset, models, predictions.

    Objects are written whole and only where there is none: there is no overwrite, by design.

    A store is confined to its root, since what it holds may come from strangers. Every method raises UnsafePathError
    for a name that `split_name` refuses. In a folder, no component below the root may be a symbolic link: `walk` skips
    links, everything else refuses them, and only regular files are read, written or deleted.
    """

    def get_unverified(self, name: str) -> bytes:
        """Read one object for a caller who knows its hash: what a network altered may come back."""
        return self.get(name)

    def open_local(self, name: str) -> BinaryIO | None:
        """Open an object as a file of this machine, or return None for a remote store. The caller closes it."""
        return None

    @abstractmethod
    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """Write one object whole. False, and nothing written, when the name is already taken.

        A put whose reply was lost answers False to its own retry: where that matters, read the name back.
        """

    def new_object(self, folder: str) -> NewObject:
        """Begin an object below `folder`, piece by piece. Here it grows in memory and is put whole."""
        split_name(folder)
        return _InMemory(self)

    def new_large_object(self, folder: str) -> NewObject:
        """Begin an object of any size, as `new_object` does: memory does not grow with it."""
        return self.new_object(folder)

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove one object; one that is not there is no error."""

    def sweep(self, age_s: float) -> None:
        """Remove what writers that were killed more than `age_s` seconds ago left behind, unseen by `walk`."""

    @abstractmethod
    def require_target(self) -> None:
        """Raise RequestError, within seconds, where it can be seen that nothing can be written here."""


class _InMemory(NewObject):
    def __init__(self, store: Store) -> None:
        self._store, self._data = store, io.BytesIO()

    def write(self, data: Buffer) -> None:
        self._data.write(data)

    def publish(self, name: str) -> bool:
        return self._store.put_if_absent(name, self._data.getvalue())

    def discard(self) -> None:
        self._data.close()
