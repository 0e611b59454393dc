"""Objects named by their content, verified when they are read back."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from afinar.config.strict import Count
from afinar.errors import IntegrityError, UnsafePathError
from afinar.storage.names import check_sha256, split_name
from afinar.storage.store import Buffer, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """Reference to a committed object: its name in the store, number of rows, size and hash."""

    path: str
    rows: Count
    bytes: Count
    sha256: str

    def __post_init__(self) -> None:
        """Raise UnsafePathError for a path that leads out of a store, a bad hash or a bad count.

        References are read from records of others, and objects are read, written and deleted by
        these paths.
        """
        split_name(self.path)
        check_sha256(self.sha256)

        if not all(isinstance(count, int) and count >= 0 for count in (self.rows, self.bytes)):
            raise UnsafePathError(f"{self.path!a}: a count of rows or bytes is no number")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def sha256(data: Buffer) -> str:
    """Return the SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def put_object(store: Store, template: str, data: Buffer, rows: int) -> ObjectRef:
    """Write `data` under `template`, in which `{hash}` becomes the first 16 digits of its SHA-256.

    If the name is taken, an equal object was written before: that is success too.
    """
    digest = sha256(data)
    path = template.format(hash=digest[:16])
    store.put_if_absent(path, data)
    return ObjectRef(path=path, rows=rows, bytes=memoryview(data).nbytes, sha256=digest)


class ObjectWriter:
    """Writer of an object in pieces, so that a worker's memory does not grow with the object.

    A context manager: an object that is not saved inside the block is discarded. Pass
    `large=True` for an object that may not fit into memory. pyarrow can write to it as to a file.
    """

    def __init__(self, store: Store, folder: str, large: bool = False) -> None:
        self._new = store.new_large_object(folder) if large else store.new_object(folder)
        self._hash, self._bytes = hashlib.sha256(), 0
        self.closed = False  # pyarrow asks for it

    def __enter__(self) -> ObjectWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._new.discard()

    def write(self, data: Buffer) -> int:
        """Append bytes and return their number."""
        self._hash.update(data)
        self._new.write(data)
        size = memoryview(data).nbytes
        self._bytes += size
        return size

    def flush(self) -> None:
        """Do nothing: the object is complete with `save`."""

    def save(self, template: str, rows: int) -> ObjectRef:
        """Publish the object under `template`, as `put_object` does."""
        digest = self._hash.hexdigest()
        path = template.format(hash=digest[:16])
        self._new.save_as(path)
        return ObjectRef(path=path, rows=rows, bytes=self._bytes, sha256=digest)


def get_object(store: Store, ref: ObjectRef) -> bytes:
    """Read an object and verify it. Raises IntegrityError if its bytes are not the committed ones.

    It is read twice before that: a body that the network altered arrives intact the second time.
    """
    data = store.get_unverified(ref.path, ref.bytes)
    if not _is_committed(data, ref):
        data = store.get_unverified(ref.path, ref.bytes)
        check_hash(data, ref, store)
    return data


def check_hash(data: Buffer, ref: ObjectRef, store: Store) -> None:
    """Raise IntegrityError unless `data` has the committed size and hash."""
    if not _is_committed(data, ref):
        raise IntegrityError(
            f"{store.uri(ref.path)} is not what was committed: its size or its hash is another. "
            "Restore it from a backup, or remove it and run the job that made it again."
        )


def _is_committed(data: Buffer, ref: ObjectRef) -> bool:
    return memoryview(data).nbytes == ref.bytes and sha256(data) == ref.sha256
