"""Record of an error that would recur in every attempt of a run: `runs/<run>/failure.json`.

A worker writes it. Later attempts of the same job then end at once, and the driver raises the
error.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from afinar.errors import (
    AfinarError,
    ChangedError,
    ForbiddenError,
    IntegrityError,
    ModelError,
    NotFoundError,
    RecordError,
    RequestError,
    ShortfallError,
    StorageError,
    UnsafePathError,
)
from afinar.storage.records import read_record
from afinar.storage.store import Store

_ERRORS: Final[dict[str, type[AfinarError]]] = {
    error.__name__: error
    for error in (
        RequestError,
        RecordError,
        ShortfallError,
        StorageError,
        NotFoundError,
        ForbiddenError,
        ChangedError,
        IntegrityError,
        UnsafePathError,
        ModelError,
    )
}


@dataclass(frozen=True, kw_only=True)
class _Failure:
    kind: str
    sentence: str


def record_failure(store: Store, run: str, error: AfinarError) -> None:
    """Record the error unless the run has one already."""
    failure = _Failure(kind=type(error).__name__, sentence=str(error))
    store.put_if_absent(_name(run), json.dumps(asdict(failure)).encode())


def read_failure(store: Store, run: str) -> AfinarError | None:
    """Return the recorded error with its class and message, None if there is none.

    An error whose class is not listed here becomes an AfinarError.
    """
    try:
        failure = read_record(store, _name(run), _Failure)
    except NotFoundError:
        return None
    return _ERRORS.get(failure.kind, AfinarError)(failure.sentence)


def delete_failure(store: Store, run: str) -> None:
    """Delete the record before a new job tries the run again: the cause may have been removed."""
    store.delete(_name(run))


def _name(run: str) -> str:
    return f"runs/{run}/failure.json"
