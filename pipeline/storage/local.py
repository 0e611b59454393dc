"""A folder as a store."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ChangedError, ForbiddenError, NotFoundError, RequestError, StorageError
from pipeline.storage.store import ObjectInfo, Store


class LocalStore(Store):
    """Objects are files; put-if-absent is a hard link, which POSIX makes atomic and exclusive."""

    def _path(self, name: str) -> Path:
        return Path(self.root, name)

    def local_path(self, name: str) -> Path:
        """Path of the object."""
        return self._path(name)

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Walk the folder; links to folders are followed, once each.

        Raises ForbiddenError for a folder that cannot be entered: its pictures would be missing unnoticed.
        """
        visited: set[tuple[int, int]] = set()
        for folder, subfolders, files in os.walk(self._path(prefix), followlinks=True, onerror=_refuse):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in visited:
                subfolders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for file in files:
                if not file.startswith(".") and (info := self._info(os.path.join(folder, file))):  # noqa: PTH118
                    yield info

    def _info(self, path: str) -> ObjectInfo | None:
        """One file as listed. One that cannot be looked at is listed too, and found out when it is read."""
        try:
            status = os.stat(path)  # noqa: PTH116  (a tenth of Path's cost, per picture)
        except OSError:
            size, etag = 0, "unreadable"
        else:
            if not stat.S_ISREG(status.st_mode):
                return None
            size, etag = status.st_size, _mark(status)
        # Names that are not UTF-8 cannot stand in a table; escaped, they are listed and rejected as missing.
        uri = path.encode("utf-8", "backslashreplace").decode()
        return ObjectInfo(name=os.path.relpath(uri, self.root), uri=uri, size=size, etag=etag)

    def get(self, name: str, etag: str | None = None) -> bytes:
        """Read a file; a change of size or mtime before or while reading is a ChangedError."""
        with _translated(name), self._path(name).open("rb") as file:
            data = file.read()
            if etag is not None and _mark(os.fstat(file.fileno())) != etag:
                raise ChangedError(f"{self.uri(name)} changed since it was listed")
            return data

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        """Write beside the target, then link into place: a reader sees all of it or nothing."""
        target = self._path(name)
        scratch = target.with_name(f".tmp-{uuid.uuid4().hex}")
        with _translated(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with scratch.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(scratch, target)
            except FileExistsError:
                return False
            finally:
                scratch.unlink(missing_ok=True)
        return True

    def delete(self, name: str) -> None:
        """Remove a file."""
        with _translated(name):
            self._path(name).unlink(missing_ok=True)

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


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise ForbiddenError(f"cannot list {error.filename}: {error.strerror}") from error


def _mark(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{name}: {error.strerror}") from error
    except PermissionError as error:
        raise ForbiddenError(f"{name}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"{name}: {error.strerror or error}") from error
