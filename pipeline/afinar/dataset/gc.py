"""Verify a dataset's objects; find and delete the objects that nothing needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from afinar.dataset.manifest import FOLDER, Manifest, get_manifests, list_objects
from afinar.errors import RecordError, StorageError
from afinar.storage.objects import ObjectRef
from afinar.storage.store import Store
from afinar.storage.versions import read_consistently
from afinar.units.gc import delete_objects, delete_versions
from afinar.units.plans import StoredUnits, stored_plans
from afinar.units.quarantine import ATTEMPTS
from afinar.units.verify import Verification, needed_objects, verify_objects

_COLLECTED: Final = (
    "shards",
    "facts",
    "units",
    "index",
    "rejects",
    "labels",
    "lists",
    "plans",
    "probes",
    ATTEMPTS,
)
_VERSIONED: Final = frozenset({"shards", "facts", "units", "plans"})
"""Folders whose objects have the version that they lead to at the start of their names."""


def verify_dataset(store: Store, kept: Iterable[Manifest]) -> Verification[int]:
    """Read every object of these versions and compare its hash; damage names the versions."""
    owners = ((manifest.version, _objects_of(store, manifest)) for manifest in kept)
    return verify_objects(store, needed_objects(owners))


def _objects_of(store: Store, manifest: Manifest) -> list[ObjectRef]:
    """Return a version's list and the objects in it.

    If the list is damaged it is returned alone: verifying it reports the damage.
    """
    try:
        return [manifest.objects, *(entry.ref for entry in list_objects(store, manifest))]
    except (StorageError, RecordError):
        return [manifest.objects]


def open_plans(store: Store, current: int) -> Iterator[StoredUnits]:
    """Yield the plans of versions after `current`.

    Older plans led to their version, or a concurrent job published that version first.
    """
    return (plan for plan in stored_plans(store) if version_in(plan.name) > current)


def version_in(name: str) -> int:
    """Return the version that a plan, a unit or a unit's object leads to, from its name."""
    digits = name.rsplit("/", maxsplit=1)[-1].split("-", maxsplit=1)[0]
    return int(digits) if digits.isdigit() else 0


def drop_plans(store: Store, current: int) -> list[str]:
    """Delete unfinished plans and return their names. A job that still runs plans again."""
    dropped = [plan.name for plan in open_plans(store, current)]
    for name in dropped:
        store.delete(name)
    return dropped


def find_unreferenced(store: Store, deleted: Collection[int]) -> list[str]:
    """Return the names of objects that no kept version names and no running job may still need.

    `deleted` are versions that count as deleted. A stored plan of a coming version is its job's
    lease: while it is stored, no object of that version is returned.

    The order of the three reads matters. A job stores its plan before it writes objects, so an
    object that was listed has a plan that is listed after it; and what was published meanwhile is
    in a manifest, since manifests are read last.
    """
    return read_consistently(store, FOLDER, lambda _: _find_unreferenced(store, deleted))


def _find_unreferenced(store: Store, deleted: Collection[int]) -> list[str]:
    candidates = [info.name for folder in _COLLECTED for info in store.walk(folder)]
    planned = {version_in(info.name) for info in store.walk("plans")}
    kept = [manifest for manifest in get_manifests(store) if manifest.version not in deleted]

    leased = {version for version in planned if version > kept[-1].version}
    named = {manifest.objects.path for manifest in kept}
    named |= {entry.ref.path for manifest in kept for entry in list_objects(store, manifest)}
    return sorted(name for name in candidates if name not in named and not _is_leased(name, leased))


def _is_leased(name: str, leased: set[int]) -> bool:
    """Return True if an object may belong to a leased version.

    Index files, rejects and lists are named by content alone, so any lease protects all of them.
    """
    if name.split("/", maxsplit=1)[0] in _VERSIONED:
        return version_in(name) in leased
    return bool(leased)


def collect_garbage(store: Store, versions: Collection[int]) -> list[str]:
    """Delete these versions, then the objects that nothing needs; return the objects' names."""
    delete_versions(store, FOLDER, versions)
    names = find_unreferenced(store, versions)
    delete_objects(store, names)
    return names
