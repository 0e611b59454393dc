"""Recognise what afinar has written into a folder: a dataset, predictions or models.

Datasets and predictions have `manifests/<number>.json`, models have `versions/<number>.json`; the
field `format` of such a record tells them apart.
"""

from __future__ import annotations

import os
from typing import Final

from afinar.errors import RecordError, RequestError, StorageError
from afinar.storage.records import parse_object
from afinar.storage.store import Reader, Store
from afinar.storage.versions import latest

RECORD: Final = "(manifests|versions)/[0-9]{8}[.]json"
"""Regular expression of the names of records."""

_MAX_RECORD_BYTES: Final = 2**26
_FOLDERS: Final = ("manifests", "versions")
_KINDS: Final = {
    "afinar-dataset": "a dataset",
    "afinar-predictions": "predictions",
    "afinar-model": "models",
}


def is_record(reader: Reader, name: str) -> bool:
    """Return True if an object is a record that afinar has written."""
    try:
        if reader.stat(name).size > _MAX_RECORD_BYTES:
            return False
        return _kind_of(parse_object(reader.get(name), name)) is not None
    except (StorageError, RecordError):
        return False


def require_target_for(store: Store, kind: str, source: str = "") -> None:
    """Raise RequestError if a target holds something else than `kind`, or is the source itself.

    `kind` is "a dataset", "predictions" or "models".
    """
    if source and _is_same(source, store.root):
        raise RequestError(
            f"{store.root} is the source as well as the target: choose another target"
        )
    for held in kinds_in(store):
        if held != kind:
            raise RequestError(f"{store.root} holds {held}, not {kind}: choose another target")


def kinds_in(store: Store) -> list[str]:
    """Return what afinar has written into a folder: "a dataset", "predictions", "models"."""
    try:
        newest = [latest(store, folder) for folder in _FOLDERS] if store.exists() else []
    except (StorageError, RecordError):
        return []  # what is wrong is reported where the record is needed
    kinds = [_kind_of(record) for _, record in filter(None, newest)]
    return [kind for kind in kinds if kind is not None]


def _kind_of(record: object) -> str | None:
    name = record.get("format") if isinstance(record, dict) else None
    return _KINDS.get(str(name).partition("/")[0])


def _is_same(uri: str, other: str) -> bool:
    if uri == other:
        return True
    is_local = not uri.startswith("s3://") and not other.startswith("s3://")
    return is_local and os.path.realpath(uri) == os.path.realpath(other)
