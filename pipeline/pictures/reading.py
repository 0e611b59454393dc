"""From a listed object to its bytes, or to a reason why not."""

from __future__ import annotations

from pipeline.errors import (
    ChangedError,
    ForbiddenError,
    NotFoundError,
    PictureError,
    Reason,
    StorageError,
)
from pipeline.pictures.decode import DEFAULT_LIMITS, Limits
from pipeline.storage.store import Store

_IN_A_ROW = 20


class PictureReader:
    """Reads the pictures of one unit, and tells a store that is gone from pictures that are."""

    def __init__(self, store: Store, limits: Limits = DEFAULT_LIMITS) -> None:
        self._store, self._limits = store, limits
        self._out_of_reach = 0

    def read(self, name: str, etag: str, size: int) -> bytes:
        """Read the picture that was listed as `name` with change mark `etag` and `size` in bytes.

        Raises PictureError with a reason that says what kept the bytes away; StorageError when that
        happened to twenty pictures in a row: then it is the store, and the unit is to be tried again.
        """
        if size > self._limits.max_bytes:
            raise PictureError(Reason.TOO_MANY_BYTES, f"{size} bytes, limit {self._limits.max_bytes}")
        try:
            data = _read(self._store, name, etag)
        except PictureError as error:
            if error.reason in {Reason.FORBIDDEN, Reason.UNREACHABLE}:
                self._out_of_reach += 1
                if self._out_of_reach >= _IN_A_ROW:
                    raise StorageError(f"{_IN_A_ROW} pictures in a row could not be read, the last: {error}") from error
            raise
        self._out_of_reach = 0
        return data


def _read(store: Store, name: str, etag: str) -> bytes:
    """Read once, and once more for a store whose listing ran ahead of it."""
    try:
        try:
            return store.get(name, etag)
        except ChangedError:
            return store.get(name, etag)
    except ChangedError as error:
        raise PictureError(Reason.CHANGED_WHILE_READING, str(error)) from error
    except NotFoundError as error:
        raise PictureError(Reason.MISSING, str(error)) from error
    except ForbiddenError as error:
        raise PictureError(Reason.FORBIDDEN, str(error)) from error
    except StorageError as error:
        raise PictureError(Reason.UNREACHABLE, str(error)) from error
