"""Looking after a dataset: are its objects what was committed, and which objects does nothing need any more."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from afinar.dataset.manifest import FOLDER, FORMAT, Manifest, list_objects
from afinar.errors import RequestError, StorageError
from afinar.storage.commit import latest, read_version, versions
from afinar.storage.objects import ObjectRef, get_object
from afinar.storage.store import Store
from afinar.units.plan import StoredPlan, stored_plans
from afinar.units.progress import ProgressReporter

_READS: Final = 8  # of shards at once
_DELETES: Final = 16
_SCRATCH_AGE_S: Final = 24 * 3600.0  # no unit takes a day
_COLLECTED: Final = ("shards", "facts", "units", "index", "rejects", "lists", "plans", "probes")


def manifests(store: Store) -> list[Manifest]:
    """Every version that is kept, oldest first. Raises RequestError where there is none."""
    found = []
    for number in versions(store, FOLDER):
        record = read_version(store, FOLDER, number)
        if record.get("format") != FORMAT:
            raise RequestError(
                f"{store.root} holds {record.get('format', 'something else')}, not a dataset"
            )
        found.append(Manifest.from_dict(record))
    if not found:
        raise RequestError(f"{store.root} holds no dataset")
    return found


def is_dataset(store: Store) -> bool:
    """Whether the newest manifest of a place is a dataset's."""
    found = latest(store, FOLDER)
    return found is not None and found[1].get("format") == FORMAT


@dataclass(frozen=True)
class Damage:
    """One object that is not what was committed, and the versions that need it."""

    path: str
    error: str
    versions: list[int]


def verify(store: Store, kept: list[Manifest]) -> tuple[int, list[Damage]]:
    """Read every object of these versions and compare its hash. How many were read, and those that differ."""
    needed_by: dict[ObjectRef, list[int]] = {}
    for manifest in kept:
        for ref in [manifest.objects, *_listed_objects(store, manifest)]:
            needed_by.setdefault(ref, []).append(manifest.version)
    return len(needed_by), [
        Damage(ref.path, error, needed_by[ref]) for ref, error in damaged(store, needed_by)
    ]


def damaged(store: Store, refs: Collection[ObjectRef]) -> list[tuple[ObjectRef, str]]:
    """Read these objects and compare their hashes; those that are not what was committed, with what is wrong."""
    with (
        ThreadPoolExecutor(_READS) as pool,
        ProgressReporter("verify", len(refs), "objects") as meter,
    ):
        errors = []
        for error in pool.map(lambda ref: _error_of(store, ref), refs):
            errors.append(error)
            meter.add(1, rejects=error is not None)
    return [(ref, error) for ref, error in zip(refs, errors, strict=True) if error]


def _listed_objects(store: Store, manifest: Manifest) -> list[ObjectRef]:
    """A version's objects; none where its list is damaged, which is found when the list itself is looked at."""
    try:
        return [ref for _, ref in list_objects(store, manifest)]
    except StorageError:
        return []


def _error_of(store: Store, ref: ObjectRef) -> str | None:
    try:
        get_object(store, ref)
    except StorageError as error:
        return str(error)
    return None


def open_plans(store: Store, current: int) -> Iterator[StoredPlan]:
    """Plans of versions after `current`. Older ones led to their version, or were overtaken."""
    return (plan for plan in stored_plans(store) if plan_version(plan.name) > current)


def plan_version(name: str) -> int:
    """The version that a plan, a unit or a unit's object leads to: it stands first in its name."""
    digits = name.rsplit("/", maxsplit=1)[-1].split("-", maxsplit=1)[0]
    return int(digits) if digits.isdigit() else 0


def drop_plans(store: Store, current: int) -> list[str]:
    """Give up unfinished plans: their jobs, if any still runs, plan anew. Their names."""
    dropped = [plan.name for plan in open_plans(store, current)]
    for name in dropped:
        store.delete(name)
    return dropped


def find_unreferenced(store: Store, withdrawn: set[int]) -> list[str]:
    """Objects that neither a kept version names nor a job under way may still need.

    A stored plan of the coming version is its job's lease: while it stands, nothing of that version goes. The order of
    the three looks matters: whoever wrote an object that was listed had stored a plan before, and what was published
    meanwhile is among the manifests, which are read last. A plan outlives every job that did not publish or give it up.
    """
    candidates = [info.name for folder in _COLLECTED for info in store.walk(folder)]
    planned = {plan_version(info.name) for info in store.walk("plans")}
    kept = [manifest for manifest in manifests(store) if manifest.version not in withdrawn]
    leased = {version for version in planned if version > kept[-1].version}
    named = {ref.path for manifest in kept for _, ref in list_objects(store, manifest)}
    named |= {manifest.objects.path for manifest in kept}
    return sorted(name for name in candidates if name not in named and not _is_leased(name, leased))


def _is_leased(name: str, leased: set[int]) -> bool:
    if name.split("/", maxsplit=1)[0] in {"shards", "facts", "units", "plans"}:
        return plan_version(name) in leased
    return bool(
        leased
    )  # index, rejects, lists: named by content alone, so that whose they are cannot be told


def collect(store: Store, withdrawn: set[int]) -> list[str]:
    """Withdraw versions, then remove what nothing needs; the names that were removed."""
    withdraw(store, withdrawn)
    return remove(store, find_unreferenced(store, withdrawn))


def withdraw(store: Store, numbers: set[int]) -> None:
    """Remove the manifests of these numbers."""
    for number in sorted(numbers):
        store.delete(f"{FOLDER}/{number:08d}.json")


def remove(store: Store, names: list[str]) -> list[str]:
    """Remove these objects, and what writers that were killed long ago left half written. The names."""
    with ThreadPoolExecutor(_DELETES) as pool:
        list(pool.map(store.delete, names))
    store.sweep(_SCRATCH_AGE_S)
    return names
