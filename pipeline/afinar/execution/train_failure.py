"""Error of a training that would recur in every attempt, kept by Ray's control service.

A worker records it. Ray Train then needs no further attempt: the driver raises the error. It is not
kept in the model's store, which may be what failed.
"""

from __future__ import annotations

import errno
import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)

from afinar.errors import AfinarError, NoSpaceError, StorageError
from afinar.storage.records import as_record, parse_object

_NAMESPACE: Final = "afinar"


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """Record of an error: the name of its class, and its message."""

    kind: str
    message: str


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
    failure = _Failure(kind=type(error).__name__, message=str(error))
    _internal_kv_put(key, json.dumps(asdict(failure)).encode(), False, namespace=_NAMESPACE)


def read_failure(key: str) -> AfinarError | None:
    """Return the recorded error, None if there is none.

    An error of a class that is not in `afinar.errors` becomes an AfinarError.
    """
    record = _internal_kv_get(key, namespace=_NAMESPACE)
    if not record:
        return None
    uri = "the failure of a training"
    failure = as_record(parse_object(record, uri), _Failure, uri)
    classes = {kind.__name__: kind for kind in _subclasses(AfinarError)}
    return classes.get(failure.kind, AfinarError)(failure.message)


def _subclasses(kind: type[AfinarError]) -> Iterator[type[AfinarError]]:
    for subclass in kind.__subclasses__():
        if subclass.__module__ == AfinarError.__module__:
            yield subclass
            yield from _subclasses(subclass)


def delete_failure(key: str) -> None:
    """Delete the record of a launch that has ended."""
    _internal_kv_del(key, namespace=_NAMESPACE)
