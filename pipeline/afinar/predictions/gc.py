"""Looking after a prediction folder: what it holds, whether it is whole, and what of it nothing needs any more."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from afinar.dataset.gc import damaged, remove, withdraw
from afinar.errors import RequestError, StorageError
from afinar.inference.quarantine import ATTEMPTS
from afinar.predictions.current import parts_of
from afinar.predictions.manifest import FOLDER, FORMAT, SCHEMAS, get_parts, object_folder, unit_in
from afinar.storage.commit import Record, latest, marker_name, read_version, versions
from afinar.storage.names import check_partition
from afinar.storage.objects import ObjectRef
from afinar.storage.store import Store
from afinar.units.plan import planned_units, stored_plans

_OURS: Final = re.compile(
    r"/part-[^-/]+-[^-/]+\.parquet$"
)  # what a person left beside them is left alone
_FOLDERS: Final = tuple({object_folder(kind, "").split("/")[0]: None for kind in SCHEMAS})


def current_record(store: Store) -> tuple[int, Record]:
    """The newest manifest and its number; (0, no partitions) where a first labelling was interrupted.

    Raises RequestError where there are no predictions.
    """
    found = latest(store, FOLDER)
    if found and found[1].get("format") == FORMAT:
        for name in found[1]["partitions"]:
            check_partition(name)
        return found
    # A labelling's plans are named by what they label, an ingest's by the version that they lead to.
    if found or all("-" in info.name for info in store.walk("plans")):
        raise RequestError(f"{store.root} holds no dataset and no predictions")
    return 0, {"current": None, "partitions": {}}


def partitions(record: Record) -> list[dict[str, Any]]:
    """What each model has labelled: partition, model, sources, rows, rejects, and what its last run did."""
    kept = ("model", "rows", "rejects", "last_run")
    return [
        {
            "partition": name,
            "sources": entry.get("sources", [entry["source"]]),
            **{key: entry[key] for key in kept},
        }
        for name, entry in record["partitions"].items()
    ]


@dataclass(frozen=True)
class Damage:
    """One object that is not what was committed, and the partitions that need it."""

    path: str
    error: str
    partitions: list[str]


def verify(store: Store, record: Record) -> tuple[int, list[Damage]]:
    """Read every object that a manifest names and compare its hash. How many were read, and those that differ."""
    needed_by: dict[ObjectRef, list[str]] = {}
    for name, entry in record["partitions"].items():
        for ref in [ObjectRef(**entry["objects"]), *_listed_objects(store, entry)]:
            needed_by.setdefault(ref, []).append(name)
    return len(needed_by), [
        Damage(ref.path, error, needed_by[ref]) for ref, error in damaged(store, needed_by)
    ]


def _listed_objects(store: Store, entry: Record) -> list[ObjectRef]:
    """A partition's parts and rejects; none where their list is damaged, which is found when that is looked at."""
    try:
        return [part.ref for part in get_parts(store, entry)]
    except StorageError:
        return []


def superseded(store: Store, folders: Iterable[str]) -> list[str]:
    """Parts and rejects in these folders that the newest manifest does not name and no stored plan is writing.

    The order of the three looks matters: whoever wrote an object that was listed had stored a plan before, and what was
    published meanwhile is in the manifest, which is read last.
    """
    listed = (info.name for folder in folders for info in store.walk(folder))
    objects = [name for name in listed if _OURS.search(name)]
    busy = planned_units(store) if objects else set()
    found = latest(store, FOLDER)
    record = found[1] if found else None
    named = {
        part.ref.path
        for name in (record or {}).get("partitions", {})
        for part in parts_of(store, record, name)
    }
    return [name for name in objects if name not in named and unit_in(name) not in busy]


def sweep(store: Store, folders: Iterable[str]) -> list[str]:
    """Remove what is superseded in these folders; the names.

    The markers of its units go first: a plan that comes to the same units must not take them for done.
    """
    names = superseded(store, folders)
    for marker in {marker_name(unit_in(name)): None for name in names}:
        store.delete(marker)
    return remove(store, names) if names else []


def _idle(store: Store) -> list[str]:
    """Markers of units that no stored plan has, what was left of attempts at them, and where no plan is stored, lists
    that no manifest names, and probes.

    A unit's marker says only to its own plan that it is done. Lists and probes are named by content and by chance, so
    that whose they are cannot be told.
    """
    markers = [info.name for info in store.walk("units")]
    attempts = [info.name for info in store.walk(ATTEMPTS)]
    shared = [info.name for folder in ("lists", "probes") for info in store.walk(folder)]
    plans = list(stored_plans(store))
    units = {unit for plan in plans for unit in plan.units}
    busy = {marker_name(unit) for unit in units}
    abandoned = [name for name in attempts if name.split("/")[1] not in units]
    kept = [read_version(store, FOLDER, number) for number in versions(store, FOLDER)]
    lists = {entry["objects"]["path"] for record in kept for entry in record["partitions"].values()}
    unnamed = [] if plans else [name for name in shared if name not in lists]
    return [name for name in markers if name not in busy] + abandoned + unnamed


def collect(store: Store, keep: int, drop_plans: bool) -> tuple[list[int], list[str]]:
    """Remove what nothing needs: withdraw all but the newest `keep` manifests (0: none), give unfinished plans up.

    The numbers withdrawn, and the names of what was removed.
    """
    withdrawn = versions(store, FOLDER)[:-keep] if keep else []
    withdraw(store, set(withdrawn))
    dropped = remove(store, [plan.name for plan in stored_plans(store)] if drop_plans else [])
    idle = remove(store, _idle(store))  # a plan's markers before its parts, as in `sweep`
    return withdrawn, sorted([*dropped, *idle, *sweep(store, _FOLDERS)])
