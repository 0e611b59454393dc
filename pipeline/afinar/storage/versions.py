"""Numbered versions: JSON records `<folder>/<number>.json`; the highest number is current.

    manifests/00000001.json
    manifests/00000002.json     <- latest()

Two concurrent writers may both try to publish number 3. One put succeeds. The other writer reads
record 3 back, finds an owner token that is not its own, builds its record anew on top of version 3
and tries number 4.
"""

from __future__ import annotations

import getpass
import json
import re
import socket
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from afinar.errors import NotFoundError, RequestError, ShortfallError, StorageError
from afinar.storage.records import Record, read_object
from afinar.storage.store import Store

T = TypeVar("T")

_RECORD_NAME: Final = re.compile(r"[0-9]{8}\.json")
_PUBLISH_ATTEMPTS: Final = 20
_READ_ATTEMPTS: Final = 10  # each follows one more publication by a concurrent job
_PROBE_ATTEMPTS: Final = 3


def latest(store: Store, folder: str) -> tuple[int, Record] | None:
    """Return the highest number in `folder` and its record, or None if there is no version yet."""

    def read(numbers: list[int]) -> tuple[int, Record] | None:
        return (numbers[-1], read_version(store, folder, numbers[-1])) if numbers else None

    return read_consistently(store, folder, read)


def versions(store: Store, folder: str) -> list[int]:
    """Return the numbers of the versions in `folder`, ascending; other files are ignored."""
    names = (info.name.removeprefix(f"{folder}/") for info in store.walk(folder))
    records = (name for name in names if _RECORD_NAME.fullmatch(name))
    return sorted(int(name.removesuffix(".json")) for name in records)


def read_version(store: Store, folder: str, number: int) -> Record:
    """Return the record of one version as a JSON object; its fields are not checked.

    Raises RecordError if it is none, NotFoundError if there is no such version.
    """
    return read_object(store, record_name(folder, number))


def read_consistently(store: Store, folder: str, read: Callable[[list[int]], T]) -> T:
    """Return `read(numbers of the versions)`; call it again while jobs replace what it reads.

    A job deletes versions before it deletes their objects. So an object that a record names and
    that is missing is no damage if the versions in `folder` have changed since the record was read.
    Raises NotFoundError for damage, ShortfallError if the versions keep changing.
    """
    for _ in range(_READ_ATTEMPTS):
        numbers = versions(store, folder)
        try:
            return read(numbers)
        except NotFoundError:
            if versions(store, folder) == numbers:
                raise
    raise ShortfallError(
        f"other jobs keep publishing to {store.root} and deleting from it: run the command again"
    )


def publish(store: Store, folder: str, number: int, record: Record, owner: str) -> bool:
    """Publish `record` as version `number`, put-if-absent; return False if the number is taken.

    If the reply to a put is lost, its retry finds the name taken. So the record there is read back:
    its owner token tells whether this job wrote it.
    """
    body = json.dumps({**record, "owner": owner}, indent=1).encode()
    if store.put_if_absent(record_name(folder, number), body):
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


def record_name(folder: str, number: int) -> str:
    """Return the name of a version's record in its store."""
    return f"{folder}/{number:08d}.json"


def new_owner() -> str:
    """Return a random token that identifies the writes of one job."""
    return uuid.uuid4().hex


def current_actor() -> str:
    """Return USER@HOST of this process, for records that say who wrote them."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def probe_conditional_put(store: Store) -> None:
    """Write, rewrite and delete one object, to prove that the store enforces put-if-absent.

    Raises RequestError if the store is not writable or lets the second write replace the first.
    """
    # Garbage collection by a concurrent job may delete a probe between two of its requests.
    if not any(_is_probe_kept(store) for _ in range(_PROBE_ATTEMPTS)):
        raise RequestError(
            f"{store.root} lets a second writer replace an object (it ignores If-None-Match), so "
            "two jobs could overwrite each other. Use a store that enforces conditional puts."
        )


def _is_probe_kept(store: Store) -> bool:
    name = f"probes/{new_owner()}"
    first = name.encode()
    try:
        # The result is not used: if the first reply is lost, the retry reports the name as taken.
        store.put_if_absent(name, first)
        replaced = store.put_if_absent(name, b"second")
        return store.get(name) == first and not replaced
    except NotFoundError:
        return False
    except StorageError as error:
        raise RequestError(
            f"cannot write to {store.root}: {error}. Choose a target you may write to."
        ) from error
    finally:
        with suppress(StorageError):  # a probe that is left behind is harmless
            store.delete(name)
