"""Deletion of features: what nothing needs, and features of pictures that were erased."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afinar.dataset.manifest import get_manifests
from afinar.dataset.reader import Dataset
from afinar.errors import ShortfallError
from afinar.features.manifest import (
    MANIFESTS,
    FeatureManifest,
    FeatureVersion,
    NewShard,
    current_features,
    feature_keys,
    index_of,
    list_features,
    open_features_store,
    publish_features,
    read_features,
    unit_of,
)
from afinar.features.shards import put_shard, read_shard
from afinar.storage.markers import committed_units
from afinar.storage.names import split_name
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.storage.versions import new_owner, versions
from afinar.units.gc import delete_objects, delete_versions
from afinar.units.plans import stored_plans
from afinar.units.verify import Damage, Verification, needed_objects, verify_objects

_PUBLISH_ATTEMPTS: Final = 20
_MAX_DEAD: Final = 0.2  # share of a shard's rows that no kept version of the dataset has


def collect_key(dataset: str, key: str) -> list[str]:
    """Delete what no job and not the newest version of a key needs; return the objects' names.

    The order of the reads matters: objects, plans, manifest. A job stores its plan before it writes
    an object, and what was published since is in the manifest. Names of indexes and lists do not
    tell which job wrote them, so while any plan is stored they stay.
    """
    store = open_features_store(dataset, key)
    names = [info.name for folder in _FOLDERS for info in store.walk(folder)]
    plans = list(stored_plans(open_features_store(dataset)))
    leased = {unit for plan in plans for unit in plan.units}

    old = versions(store, MANIFESTS)[:-1]
    manifest = current_features(store)
    named = set() if manifest is None else _objects_of(store, manifest)
    unneeded = [
        name
        for name in names
        if name not in {ref.path for ref in named} and not _is_leased(name, leased, bool(plans))
    ]
    delete_versions(store, MANIFESTS, old)
    # Markers first: a marker whose shard is gone would count as a committed unit.
    unneeded.sort(key=lambda name: not name.startswith("units/"))
    for marker in [name for name in unneeded if name.startswith("units/")]:
        store.delete(marker)
    delete_objects(store, unneeded)
    return unneeded


_FOLDERS: Final = ("units", "shards", "index", "lists", "probes")


def _is_leased(name: str, leased: set[str], has_plans: bool) -> bool:
    folder, *_, file = split_name(name)
    if folder == "units":
        return file.removesuffix(".json") in leased
    if folder == "shards":
        return unit_of(name) in leased
    return has_plans


def _objects_of(store: Store, manifest: FeatureManifest) -> set[ObjectRef]:
    return {manifest.objects, *(ref for _, ref in list_features(store, manifest))}


def verify_features(dataset: str) -> Verification[str]:
    """Read every object of the newest versions of all keys, and compare its hash.

    Damage names the keys.
    """
    read = 0
    damaged: list[Damage[str]] = []
    for key in feature_keys(dataset):
        store = open_features_store(dataset, key)
        manifest = current_features(store)
        if manifest is not None:
            owners = [(key, _objects_of(store, manifest))]
            result = verify_objects(store, needed_objects(owners))
            read, damaged = read + result.read, damaged + result.damaged
    return Verification(read, damaged)


@dataclass(frozen=True)
class KeyStatus:
    """Status of one key: its manifest, and how many pictures of the dataset have features."""

    manifest: FeatureManifest
    covered: int


def status_of_features(dataset: Dataset) -> list[KeyStatus]:
    """Return the status of each key that has a version."""
    found = []
    wanted = dataset.index.column("sample_id").unique()
    for key in feature_keys(dataset.store.root):
        version = read_features(open_features_store(dataset.store.root, key))
        if version.manifest is not None:
            known = pc.is_in(wanted, version.index.column("sample_id"))
            found.append(KeyStatus(version.manifest, pc.sum(known).as_py() or 0))
    return found


@dataclass(frozen=True)
class PlanStatus:
    """A stored plan by its name below the dataset, with the numbers of its units."""

    name: str
    units: int
    committed: int


def unfinished_plans(dataset: str) -> list[PlanStatus]:
    """Return the plans of jobs that run or were interrupted."""
    plans = list(stored_plans(open_features_store(dataset)))
    keys = feature_keys(dataset) if plans else []
    done = {unit for key in keys for unit in committed_units(open_features_store(dataset, key))}
    return [
        PlanStatus(f"features/{plan.name}", len(plan.units), len(plan.units & done))
        for plan in plans
    ]


def collect_features(dataset: str, *, drop_plans: bool) -> list[str]:
    """Delete what nothing needs; return the names, relative to the dataset.

    Shards of which more than a fifth of the rows belong to no kept version of the dataset are
    written again without these rows.
    """
    shared = open_features_store(dataset)
    removed = []
    if drop_plans:
        removed = [plan.name for plan in stored_plans(shared)]
        delete_objects(shared, removed)
    keys = feature_keys(dataset)
    if keys:
        kept = _kept_ids(open_store(dataset))
        for key in keys:
            _remove_rows(open_features_store(dataset, key), kept, keep=True, least_dead=_MAX_DEAD)
            removed += [f"{key}/{name}" for name in collect_key(dataset, key)]
    return [f"features/{name}" for name in removed]


def _kept_ids(store: Store) -> pa.Array:
    """Return the content hashes in all kept versions of a dataset."""
    columns = [
        Dataset(store, manifest).index.column("sample_id") for manifest in get_manifests(store)
    ]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks]).unique()


def erase_features(dataset: str) -> int:
    """Erase the features of all pictures that were erased from a dataset; return their number.

    Plans that name such a picture are deleted: a job that carries one out plans again. If this is
    killed, the next call completes it.
    """
    forgotten = pa.array(get_manifests(open_store(dataset))[-1].forgotten, pa.string())
    shared = open_features_store(dataset)
    if not len(forgotten) or not feature_keys(dataset):
        return 0
    delete_objects(shared, [plan.name for plan in stored_plans(shared)])
    erased = 0
    for key in feature_keys(dataset):
        store = open_features_store(dataset, key)
        erased += _remove_rows(store, forgotten, keep=False, least_dead=0.0)
        collect_key(dataset, key)
        store.delete_scratch(0)
    return erased


def _remove_rows(store: Store, sample_ids: pa.Array, *, keep: bool, least_dead: float) -> int:
    """Publish a version without the rows of these pictures, or (`keep`) with these alone.

    Shards with a share of dead rows of at most `least_dead` stay as they are. Returns the number of
    rows that were removed.
    """
    for _ in range(_PUBLISH_ATTEMPTS):
        current = read_features(store)
        if current.manifest is None:
            return 0
        is_named = pc.is_in(current.index.column("sample_id"), sample_ids)
        alive = is_named if keep else pc.invert(is_named)
        touched = _touched(current, alive, least_dead)
        if not touched:
            return 0
        is_touched = pc.is_in(current.index.column("shard"), pa.array(sorted(touched), pa.string()))
        untouched = current.index.filter(pc.invert(is_touched))
        rewritten = list(_rewrite(store, current.manifest, current, touched, alive))
        index = pa.concat_tables([untouched, index_of(rewritten)])
        shards = [ref for ref in current.shards if ref.path not in touched]
        shards += [shard.ref for shard in rewritten]
        manifest = current.manifest
        if publish_features(
            store, current, manifest.spec, manifest.width, index, shards, new_owner()
        ):
            return len(current.index) - len(index)
    raise ShortfallError(f"{_PUBLISH_ATTEMPTS} other jobs published to {store.root} first")


def _touched(current: FeatureVersion, alive: pa.ChunkedArray, least_dead: float) -> set[str]:
    """Return the shards with a larger share of dead rows than `least_dead`."""
    dead = pc.value_counts(current.index.column("shard").filter(pc.invert(alive)).combine_chunks())
    counts = dict(
        zip(dead.field("values").to_pylist(), dead.field("counts").to_pylist(), strict=True)
    )
    return {ref.path for ref in current.shards if counts.get(ref.path, 0) > least_dead * ref.rows}


def _rewrite(
    store: Store,
    manifest: FeatureManifest,
    current: FeatureVersion,
    touched: set[str],
    alive: pa.ChunkedArray,
) -> Iterable[NewShard]:
    """Write the living rows of each touched shard as a new one; one at a time in memory."""
    spec = manifest.spec
    for ref in current.shards:
        if ref.path not in touched:
            continue
        mask = pc.and_(pc.equal(current.index.column("shard"), ref.path), alive)
        rows = current.index.filter(mask).sort_by("row")
        if not len(rows):
            continue
        values = read_shard(store, ref, manifest.width, spec.stored_as)
        kept = np.ascontiguousarray(values[rows.column("row").to_numpy()])
        sample_ids = rows.column("sample_id").combine_chunks()
        unit = f"left{new_owner()[:12]}"
        yield NewShard(put_shard(store, unit, sample_ids, kept, spec.stored_as), sample_ids)
