"""Interfaces of a store of objects, whether a folder or a bucket."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import BinaryIO, ClassVar, Final, NamedTuple, TypeAlias

from afinar.storage.left_out import LeftOut
from afinar.storage.names import split_name

Buffer: TypeAlias = bytes | bytearray | memoryview

S3_HINT: Final = (
    ". Check the endpoint and the credentials. AWS_NO_SIGN_REQUEST=true reads a public bucket "
    "without credentials, AFINAR_S3_REQUESTER_PAYS=true accepts the costs of a requester-pays "
    "bucket."
)
"""End of a message on a bucket that refuses or does not answer: the settings to check."""


class ObjectInfo(NamedTuple):
    """One listed object. `name` is relative to the root of the listed store, `size` is in bytes.

    The etag of an object changes with its content. A named tuple, since a listing creates ten
    million of them: 0.2 µs each, where a frozen dataclass costs 0.5.
    """

    name: str
    uri: str
    size: int
    etag: str


class NewObject(ABC):
    """An object that is being written. Readers see nothing of it before it has its name."""

    @abstractmethod
    def write(self, data: Buffer) -> None:
        """Append bytes."""

    @abstractmethod
    def save_as(self, name: str) -> bool:
        """Give the object its final name. Return False and change nothing if the name is taken."""

    @abstractmethod
    def discard(self) -> None:
        """Delete what was written. Does nothing to an object that was saved."""


class Reader(ABC):
    """Objects under one root URI, for reading: pictures that others keep, or the base of a store.

    Names are relative, with forward slashes. A reader of a folder follows symbolic links and takes
    any name. All methods may be called from several threads at once.
    """

    parallel_reads: ClassVar[int] = 1
    """Useful number of concurrent reads per process. 1: call `prefetch`, then read in sequence."""
    is_remote: ClassVar[bool] = False
    """True if the objects are not in this machine's file system."""
    hint: ClassVar[str] = ""
    """End of a message on a store that refuses or does not answer: the settings to check."""

    def __init__(self, root: str) -> None:
        self.root = root

    def uri(self, name: str) -> str:
        """Return the absolute URI of the object `name`."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    @abstractmethod
    def walk(self, prefix: str = "", left_out: LeftOut | None = None) -> Iterator[ObjectInfo]:
        """Yield every object below the folder `prefix`, in no particular order.

        Hidden names (a leading dot in any part) are left out. A reader of somebody else's folder
        also leaves out what systems put there (see `left_out`), and counts all of it in `left_out`.
        A folder that does not exist is empty.
        """

    @abstractmethod
    def get(self, name: str, etag: str | None = None) -> bytes:
        """Read a whole object; with `etag`, only if it still has this etag.

        Where ETags are MD5s, a body that the network altered is detected and read again. Raises
        NotFoundError, ForbiddenError, ChangedError, or StorageError after bounded retries.
        """

    @abstractmethod
    def stat(self, name: str) -> ObjectInfo:
        """Return the listing entry of one object, which may be hidden.

        Raises NotFoundError, ForbiddenError, or StorageError after bounded retries.
        """

    def prefetch(self, name: str) -> None:  # noqa: B027  (not every store has a use for it)
        """Announce that `name` will be read soon, so that the kernel can begin to load it."""

    @abstractmethod
    def exists(self) -> bool:
        """Return True if the root exists: a folder, or a bucket that answers.

        Takes seconds at most. Raises StorageError if the store cannot be asked.
        """


class Store(Reader):
    """Objects under one root URI that this project writes: a dataset, models, predictions.

    Objects are written whole, under names that are free: there is no overwrite, by design.

    A store is confined to its root, since its content may come from strangers. Every method raises
    UnsafePathError for a name that `split_name` refuses. In a folder, no component below the root
    may be a symbolic link: `walk` skips links, all other methods refuse them, and only regular
    files are read, written or deleted.
    """

    @abstractmethod
    def get(self, name: str, etag: str | None = None, *, max_bytes: int | None = None) -> bytes:
        """Read a whole object, as Reader.get does.

        Raises IntegrityError, before memory is taken, if it has more than `max_bytes`.
        """

    def get_unverified(self, name: str, max_bytes: int | None = None) -> bytes:
        """Read a whole object without checking its bytes, for a caller that knows their hash."""
        return self.get(name, max_bytes=max_bytes)

    def open_local(self, name: str) -> BinaryIO | None:
        """Open an object as a local file, which the caller closes; None for a remote store."""
        return None

    @abstractmethod
    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """Write a whole object. Return False, with nothing written, if the name is taken.

        If the reply to a put is lost, its own retry finds the name taken and returns False: where
        that matters, read the object back.
        """

    def new_object(self, folder: str) -> NewObject:
        """Begin an object below `folder` that is written in pieces and kept in memory."""
        split_name(folder)
        return _InMemory(self)

    def new_large_object(self, folder: str) -> NewObject:
        """Begin an object below `folder` that may not fit into memory."""
        return self.new_object(folder)

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete one object. It is no error if it does not exist."""

    def delete_scratch(self, age_s: float) -> None:
        """Delete unfinished objects that were last written `age_s` seconds ago or earlier."""

    @abstractmethod
    def require_target(self) -> None:
        """Raise RequestError, within seconds, if the root is evidently not writable."""


class _InMemory(NewObject):
    def __init__(self, store: Store) -> None:
        self._store, self._data = store, io.BytesIO()

    def write(self, data: Buffer) -> None:
        self._data.write(data)

    def save_as(self, name: str) -> bool:
        return self._store.put_if_absent(name, self._data.getvalue())

    def discard(self) -> None:
        self._data.close()
