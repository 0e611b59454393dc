"""Error of a training that would recur in every attempt, kept by Ray's control service.

A worker records it. Ray Train then needs no further attempt: the driver raises the error. It is not
kept in the model's store, which may be what failed.
"""

from __future__ import annotations

import errno
import pickle
import uuid
from typing import Final

from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)

from afinar.errors import AfinarError, NoSpaceError, StorageError

_NAMESPACE: Final = "afinar"


def new_failure_key() -> str:
    """Return a key for the failure of one launch of a training."""
    return f"train-failure-{uuid.uuid4().hex}"


def recurring_error(error: BaseException) -> AfinarError | None:
    """Return the error if it would recur in every attempt of the training, None otherwise.

    A plain StorageError is an unreachable store: another attempt may succeed. A full disk recurs,
    also where a library met it.
    """
    if isinstance(error, AfinarError):
        return None if type(error) is StorageError else error
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        place = error.filename or "the disk of a worker"
        return NoSpaceError(f"{place}: no space left there. Free some and run again.")
    return None


def record_failure(key: str, error: AfinarError) -> None:
    """Record the error unless another worker has recorded one."""
    # Without its traceback and causes, whose classes the driver may not be able to import.
    _internal_kv_put(key, pickle.dumps(type(error)(str(error))), False, namespace=_NAMESPACE)


def read_failure(key: str) -> AfinarError | None:
    """Return the recorded error, None if there is none."""
    record = _internal_kv_get(key, namespace=_NAMESPACE)
    if not record:
        return None
    error: AfinarError = pickle.loads(record)  # noqa: S301  (written by our own workers)
    return error


def delete_failure(key: str) -> None:
    """Delete the record of a launch that has ended."""
    _internal_kv_del(key, namespace=_NAMESPACE)
