"""Verify a prediction folder's objects; garbage-collect the unreferenced ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from afinar.errors import RequestError, StorageError
from afinar.predictions.manifest import (
    FOLDER,
    Partition,
    PredictionManifest,
    get_parts,
    kept_manifests,
    read_manifest,
)
from afinar.predictions.schema import SCHEMAS, object_folder, writer_unit
from afinar.storage.markers import marker_name
from afinar.storage.objects import ObjectRef
from afinar.storage.store import Store
from afinar.storage.versions import versions
from afinar.units.gc import delete_objects, delete_versions
from afinar.units.plans import planned_units, stored_plans
from afinar.units.quarantine import ATTEMPTS
from afinar.units.verify import Verification, needed_objects, verify_objects

_FOLDERS: Final = tuple(object_folder(kind, "").split("/")[0] for kind in SCHEMAS)


def require_manifest(store: Store) -> PredictionManifest:
    """Return the current manifest; version 0 if the first run was interrupted.

    Raises RequestError for a folder without predictions and without a stored plan of a labelling.
    """
    manifest = read_manifest(store)
    # Names of labelling plans contain no "-"; names of ingest plans start with the version and "-".
    if not manifest.version and all("-" in info.name for info in store.walk("plans")):
        raise RequestError(f"{store.root} holds no dataset and no predictions")
    return manifest


def verify(store: Store, manifest: PredictionManifest) -> Verification[str]:
    """Read every object that a manifest names and compare its hash. Owners are partitions."""
    owners = (
        (name, [partition.objects, *_listed_objects(store, partition)])
        for name, partition in manifest.partitions.items()
    )
    return verify_objects(store, needed_objects(owners))


def _listed_objects(store: Store, partition: Partition) -> list[ObjectRef]:
    """Return a partition's objects; none if their list is damaged, which is reported for itself."""
    try:
        return [part.ref for part in get_parts(store, partition)]
    except StorageError:
        return []


def find_superseded(store: Store, folders: Iterable[str]) -> list[str]:
    """Return the objects in these folders that no manifest names and no stored plan may need.

    Only names that a unit gives to its objects are considered. The order of the three reads
    matters: the folders, the stored plans, the manifest. A unit that had written an object when the
    folders were listed belongs to a plan stored before. If that plan has been carried out and
    deleted since, the manifest it published is read afterwards.
    """
    names = (info.name for folder in folders for info in store.walk(folder))
    writers = {name: unit for name in names if (unit := writer_unit(name)) is not None}
    leased = planned_units(store) if writers else set()
    manifest = read_manifest(store)
    named = {
        part.ref.path
        for partition in manifest.partitions.values()
        for part in get_parts(store, partition)
    }

    return [name for name, unit in writers.items() if name not in named and unit not in leased]


def delete_superseded(store: Store, folders: Iterable[str]) -> list[str]:
    """Delete the superseded objects in these folders and return their names.

    The markers of their units are deleted first. If this is interrupted, no marker is left without
    its objects: a later plan with the same unit would take that unit for committed.
    """
    names = find_superseded(store, folders)
    for marker in {marker_name(unit) for name in names if (unit := writer_unit(name))}:
        store.delete(marker)
    if names:
        delete_objects(store, names)

    return names


def _find_unneeded_records(store: Store) -> list[str]:
    """Return markers and attempt files of units in no stored plan.

    If no plan is stored, also unreferenced object lists and all probes. Their names do not tell
    which job wrote them, so while a plan is stored they may belong to its job.
    """
    markers = [info.name for info in store.walk("units")]
    attempts = [info.name for info in store.walk(ATTEMPTS)]
    shared = [info.name for folder in ("lists", "probes") for info in store.walk(folder)]
    plans = list(stored_plans(store))
    units = {unit for plan in plans for unit in plan.units}
    leased = {marker_name(unit) for unit in units}

    unneeded = [name for name in markers if name not in leased]
    unneeded += [name for name in attempts if name.split("/")[1] not in units]
    if not plans:
        partitions = (manifest.partitions.values() for manifest in kept_manifests(store))
        named_lists = {partition.objects.path for kept in partitions for partition in kept}
        unneeded += [name for name in shared if name not in named_lists]
    return unneeded


class Collected(NamedTuple):
    """Numbers of the manifests and names of the objects that were deleted."""

    versions: list[int]
    objects: list[str]


def collect(store: Store, keep: int, drop_plans: bool) -> Collected:
    """Delete all manifests but the newest `keep` (0: keep all), then whatever nothing needs.

    With `drop_plans` unfinished plans are deleted first, so that their units are not needed either.
    """
    old = versions(store, FOLDER)[:-keep] if keep else []
    delete_versions(store, FOLDER, old)
    plans = [plan.name for plan in stored_plans(store)] if drop_plans else []
    delete_objects(store, plans)

    # Markers before parts, as in `delete_superseded`.
    records = _find_unneeded_records(store)
    delete_objects(store, records)
    parts = delete_superseded(store, _FOLDERS)
    return Collected(old, sorted([*plans, *records, *parts]))
