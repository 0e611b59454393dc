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
from pipeline.storage.store import Store


def read_picture(store: Store, name: str, etag: str) -> bytes:
    """Read the picture that was listed as `name` with change mark `etag`.

    A mismatch is tried once more, for a store whose listing ran ahead. Raises PictureError with a reason
    that says what kept the bytes away.
    """
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
