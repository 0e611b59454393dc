"""Delete objects that nothing needs, and what killed writers left half written."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from afinar.storage.store import Store

_DELETES: Final = 16  # at once
_SCRATCH_AGE_S: Final = 24 * 3600.0  # no unit takes a day


def delete_objects(store: Store, names: Collection[str]) -> None:
    """Delete these objects, and scratch files that no writer has touched for a day."""
    with ThreadPoolExecutor(_DELETES) as pool:
        list(pool.map(store.delete, names))
    store.delete_scratch(_SCRATCH_AGE_S)


def delete_versions(store: Store, folder: str, numbers: Collection[int]) -> None:
    """Delete the numbered records of these versions."""
    for number in sorted(numbers):
        store.delete(f"{folder}/{number:08d}.json")
