"""Numbered versions: JSON records `<folder>/<number>.json`; the highest number is current.

    manifests/00000001.json
    manifests/00000002.json     <- latest()

Two concurrent writers may both try to publish number 3. One put succeeds. The other writer reads
record 3 back, finds an owner token that is not its own, builds its record anew on top of version 3
and tries number 4.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from afinar.errors import RequestError, StorageError
from afinar.storage.store import Store

Record = dict[str, Any]
_RECORD_NAME: Final = re.compile(r"[0-9]{8}\.json")
_PUBLISH_ATTEMPTS: Final = 20


def latest(store: Store, folder: str) -> tuple[int, Record] | None:
    """Return the highest number in `folder` and its record, or None if there is no version yet."""
    numbers = versions(store, folder)
    return (numbers[-1], read_version(store, folder, numbers[-1])) if numbers else None


def versions(store: Store, folder: str) -> list[int]:
    """Return the numbers of the versions in `folder`, ascending; other files are ignored."""
    names = (info.name.removeprefix(f"{folder}/") for info in store.walk(folder))
    records = (name for name in names if _RECORD_NAME.fullmatch(name))
    return sorted(int(name.removesuffix(".json")) for name in records)


def read_version(store: Store, folder: str, number: int) -> Record:
    """Return the record of one version."""
    record: Record = json.loads(store.get(_record_name(folder, number)))
    return record


def publish(store: Store, folder: str, number: int, record: Record, owner: str) -> bool:
    """Publish `record` as version `number`, put-if-absent; return False if the number is taken.

    If the reply to a put is lost, its retry finds the name taken. So the record there is read back:
    its owner token tells whether this job wrote it.
    """
    body = json.dumps({**record, "owner": owner}, indent=1).encode()
    if store.put_if_absent(_record_name(folder, number), body):
        return True
    return bool(read_version(store, folder, number).get("owner") == owner)


def append_version(
    store: Store, folder: str, build: Callable[[int, Record | None], Record], owner: str
) -> int:
    """Publish `build(number, previous record)` as the next version and return its number.

    If another writer publishes that number first, `build` is called again with the next number and
    the new record. Raises StorageError after twenty attempts.
    """
    for _ in range(_PUBLISH_ATTEMPTS):
        current = latest(store, folder)
        number, record = (1, None) if current is None else (current[0] + 1, current[1])
        if publish(store, folder, number, build(number, record), owner):
            return number
    raise StorageError(f"{store.uri(folder)}: twenty other writers published first; try again")


def _record_name(folder: str, number: int) -> str:
    return f"{folder}/{number:08d}.json"


def new_owner() -> str:
    """Return a random token that identifies the writes of one job."""
    return uuid.uuid4().hex


def probe_conditional_put(store: Store) -> None:
    """Write, rewrite and delete one object, to prove that the store enforces put-if-absent.

    Raises RequestError if the store is not writable or lets the second write replace the first.
    """
    name = f"probes/{new_owner()}"
    first = name.encode()
    try:
        # The result is not used: if the first reply is lost, the retry reports the name as taken.
        store.put_if_absent(name, first)
        replaced = store.put_if_absent(name, b"second")
        content = store.get(name)
    except StorageError as error:
        raise RequestError(
            f"cannot write to {store.root}: {error}. Choose a target you may write to."
        ) from error
    finally:
        with suppress(StorageError):  # a probe that is left behind is harmless
            store.delete(name)

    if replaced or content != first:
        raise RequestError(
            f"{store.root} lets a second writer replace an object (it ignores If-None-Match), so "
            "two jobs could overwrite each other. Use a store that enforces conditional puts."
        )
