"""Verify committed objects: read each one, compare its hash, and check that tables are whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from afinar.errors import RecordError, StorageError
from afinar.storage.arrow import from_ipc, from_parquet
from afinar.storage.objects import ObjectRef, get_object
from afinar.storage.store import Store
from afinar.units.progress import ProgressReporter

_READS: Final = 8  # of large objects at once

Owner = TypeVar("Owner")


@dataclass(frozen=True)
class Damage(Generic[Owner]):
    """One object that is not what was committed, and the versions or partitions that need it."""

    path: str
    error: str
    needed_by: list[Owner]


@dataclass(frozen=True)
class Verification(Generic[Owner]):
    """Number of objects that were read, and those that are damaged."""

    read: int
    damaged: list[Damage[Owner]]


def needed_objects(
    owners: Iterable[tuple[Owner, Iterable[ObjectRef]]],
) -> dict[ObjectRef, list[Owner]]:
    """Return each object once, with the owners that need it, in their order."""
    needed_by: dict[ObjectRef, list[Owner]] = {}
    for owner, refs in owners:
        for ref in refs:
            needed_by.setdefault(ref, []).append(owner)
    return needed_by


def verify_objects(store: Store, needed_by: Mapping[ObjectRef, list[Owner]]) -> Verification[Owner]:
    """Read every object, compare its hash, and check that a table is one; several at a time."""
    damaged = []

    with (
        ThreadPoolExecutor(_READS) as pool,
        ProgressReporter("verify", len(needed_by), "objects") as progress,
    ):
        errors = pool.map(lambda ref: _error_of(store, ref), needed_by)
        for (ref, owners), error in zip(needed_by.items(), errors, strict=True):
            progress.add(1, rejects=error is not None)
            if error is not None:
                damaged.append(Damage(ref.path, error, owners))
    return Verification(len(needed_by), damaged)


def _error_of(store: Store, ref: ObjectRef) -> str | None:
    try:
        data, uri = get_object(store, ref), store.uri(ref.path)
        if ref.path.endswith(".arrow"):
            from_ipc(data, uri=uri, rows=ref.rows)
        elif ref.path.endswith(".parquet"):
            from_parquet(data, uri=uri, rows=ref.rows)
    except (StorageError, RecordError) as error:
        return str(error)
    return None
