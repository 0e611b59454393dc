"""The commit protocol: units of work, numbered versions, and proof that the store can carry them.

Data first, marker last: a unit writes its objects, then its marker, put-if-absent. A version is one more
numbered JSON record, put-if-absent; the highest number is current. A killed job leaves only objects that
nothing names.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from afinar.errors import RequestError, StorageError, UnsafePathError
from afinar.storage.objects import ObjectRef
from afinar.storage.store import Store

Record = dict[str, Any]
_VERSION_NAME = re.compile(r"[0-9]{8}\.json")
_MARKER_THREADS = 16  # reading markers is latency, not work


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitMarker:
    """What a finished unit left behind: its objects by kind ("shard", "facts", "part", "rejects")."""

    unit: str
    objects: dict[str, ObjectRef]


def commit_unit(store: Store, marker: UnitMarker) -> UnitMarker:
    """Commit a unit. If a twin got there first its marker stands, and is what comes back."""
    objects = {kind: ref.as_dict() for kind, ref in marker.objects.items()}
    body = json.dumps({"unit": marker.unit, "objects": objects}).encode()
    if store.put_if_absent(marker_name(marker.unit), body):
        return marker
    return read_marker(store, marker.unit)


def read_marker(store: Store, unit: str) -> UnitMarker:
    """The committed marker of `unit`; NotFoundError when it is not committed."""
    record = json.loads(store.get(marker_name(unit)))
    objects = {kind: ObjectRef(**ref) for kind, ref in record["objects"].items()}
    if record["unit"] != unit:
        raise UnsafePathError(
            f"{store.uri(marker_name(unit))} is the marker of {record['unit']!r}: damaged or forged"
        )
    return UnitMarker(unit=unit, objects=objects)


def read_markers(store: Store, units: Iterable[str]) -> list[UnitMarker]:
    """Markers of committed units, in the order asked for."""
    with ThreadPoolExecutor(_MARKER_THREADS) as pool:
        return list(pool.map(lambda unit: read_marker(store, unit), units))


def committed_units(store: Store) -> set[str]:
    """Every unit that has a marker."""
    return {info.name.split("/")[-1].removesuffix(".json") for info in store.walk("units")}


def marker_name(unit: str) -> str:
    """The object that says a unit is committed."""
    return f"units/{unit}.json"


def latest(store: Store, folder: str) -> tuple[int, Record] | None:
    """Highest numbered record of `folder` and its number, or None when there is none yet."""
    numbers = versions(store, folder)
    return (numbers[-1], read_version(store, folder, numbers[-1])) if numbers else None


def versions(store: Store, folder: str) -> list[int]:
    """Numbers of the records of `folder`, rising. What else lies there (a note, a backup copy) is left alone."""
    names = (info.name.removeprefix(f"{folder}/") for info in store.walk(folder))
    return sorted(
        int(name.removesuffix(".json")) for name in names if _VERSION_NAME.fullmatch(name)
    )


def read_version(store: Store, folder: str, number: int) -> Record:
    """One numbered record."""
    record: Record = json.loads(store.get(_version_name(folder, number)))
    return record


def publish(store: Store, folder: str, number: int, record: Record, owner: str) -> bool:
    """Publish `record` as version `number`. False when that number is somebody else's.

    A put whose reply was lost answers "taken" to its own retry, so a taken name is read back: the
    owner token tells whether the record there is ours.
    """
    body = json.dumps({**record, "owner": owner}, indent=1).encode()
    if store.put_if_absent(_version_name(folder, number), body):
        return True
    return bool(read_version(store, folder, number).get("owner") == owner)


def append_version(
    store: Store, folder: str, make: Callable[[int, Record | None], Record], owner: str
) -> int:
    """Publish what `make(number, previous record)` returns as the next version; make anew on a lost race."""
    for _ in range(20):
        current = latest(store, folder)
        number, previous = (1, None) if current is None else (current[0] + 1, current[1])
        if publish(store, folder, number, make(number, previous), owner):
            return number
    raise StorageError(f"{store.uri(folder)}: twenty other writers published first; try again")


def _version_name(folder: str, number: int) -> str:
    return f"{folder}/{number:08d}.json"


def new_owner() -> str:
    """A token that tells this job's writes from every other's."""
    return uuid.uuid4().hex


def probe_conditional_put(store: Store) -> None:
    """Prove by a probe that the store is writable and refuses a second put of one name.

    Raises RequestError, since the remedy is another target.
    """
    name = f"probes/{new_owner()}"
    ours = name.encode()
    try:
        store.put_if_absent(name, ours)  # may say "taken" of itself, when its first reply was lost
        replaced = store.put_if_absent(name, b"second")
        kept = store.get(name)
    except StorageError as error:
        raise RequestError(
            f"cannot write to {store.root}: {error}. Choose a target you may write to."
        ) from error
    finally:
        _forget(store, name)
    if replaced or kept != ours:
        raise RequestError(
            f"{store.root} lets a second writer replace an object (it ignores If-None-Match), so two jobs "
            "could overwrite each other. Use a store that enforces conditional puts."
        )


def _forget(store: Store, name: str) -> None:
    try:
        store.delete(name)
    except StorageError:
        return  # the probe's own failure is the one to report; a stray probe is harmless
