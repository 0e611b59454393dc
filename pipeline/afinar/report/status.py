"""Status of a dataset, a prediction folder or models: contents, plans, verification, deletions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.compare import COMPARISONS
from afinar.config.status import StatusConfig
from afinar.config.strict import structure
from afinar.dataset.gc import collect_garbage, drop_plans, open_plans, verify_dataset
from afinar.dataset.manifest import FOLDER, Manifest, get_manifests, is_dataset
from afinar.dataset.reader import Dataset
from afinar.dataset.stratification import few_notes
from afinar.errors import RequestError
from afinar.features.gc import (
    collect_features,
    status_of_features,
    unfinished_plans,
    verify_features,
)
from afinar.models.registry.versions import VERSIONS, find_champion, get_model
from afinar.pictures.preprocessing import StoredView
from afinar.predictions.gc import collect, require_manifest, verify
from afinar.sources.entry import SPLITS
from afinar.storage.arrow import group_by
from afinar.storage.markers import committed_units
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.storage.versions import read_consistently, versions
from afinar.training.unfinished import collect_models, unfinished_runs, unpublished_runs
from afinar.units.plans import StoredUnits, stored_plans
from afinar.units.verify import Verification, needed_objects, verify_objects

_PARTITION_FIELDS: Final = ("sources", "model", "rows", "rejects", "last_run", "left_out")


def read_status(config: StatusConfig) -> dict[str, Any]:
    """Return the JSON summary of a folder, after the deletions that `config` asks for.

    With `verify`, `exit_code` is 1 if an object is damaged. Raises RequestError for a folder that
    holds neither a dataset nor predictions nor models.
    """
    store = open_store(config.path)
    if not is_dataset(store) and _has_models(store):
        return _models(config, store)
    read = _dataset if is_dataset(store) else _predictions
    # A concurrent job may delete objects of the versions that are described.
    return read_consistently(store, FOLDER, lambda _: read(config, store))


def _has_models(store: Store) -> bool:
    """Return True if trainings or comparisons have written into a store."""
    has_runs = versions(store, VERSIONS) or unfinished_runs(store) or unpublished_runs(store)
    return bool(has_runs) or any(True for _ in store.walk(COMPARISONS))


def _dataset(config: StatusConfig, store: Store) -> dict[str, Any]:
    kept = get_manifests(store)
    current = kept[-1]
    summary: dict[str, Any] = {"dataset": store.root}

    if config.gc:
        deleted = [manifest.version for manifest in kept[: -config.keep]] if config.keep else []
        dropped = drop_plans(store, current.version) if config.drop_plans else []
        removed = dropped + collect_garbage(store, deleted)
        removed += collect_features(store.root, drop_plans=config.drop_plans)
        summary |= {"withdrawn": deleted, "removed": removed}
        kept = [manifest for manifest in kept if manifest.version not in deleted]

    summary |= {"versions": [_version(manifest) for manifest in kept], **_head(current)}
    summary["plans"] = _plans(store, open_plans(store, current.version))
    summary["plans"] += [
        {"plan": plan.name, "units": plan.units, "committed": plan.committed}
        for plan in unfinished_plans(store.root)
    ]
    summary["features"] = _features(Dataset(store, current))

    if config.verify:
        result = verify_dataset(store, kept)
        summary |= _verification(result, "versions")
        _add_verification(summary, verify_features(store.root))
        if result.damaged:
            return summary  # the list of shards may be one of the damaged objects
    return summary | _shards(store, current)


def _features(dataset: Dataset) -> list[dict[str, Any]]:
    """Return the cached features of each key; `covered` counts pictures of this version."""
    return [
        {
            "key": status.manifest.spec.key,
            "backbone": status.manifest.spec.backbone,
            "cut": status.manifest.spec.cut,
            "pool": status.manifest.spec.pool,
            "precision": status.manifest.spec.precision,
            "stored_as": status.manifest.spec.stored_as,
            "augmented": status.manifest.spec.augmented,
            "width": status.manifest.width,
            "rows": status.manifest.rows,
            "covered": status.covered,
            "bytes": status.manifest.bytes,
        }
        for status in status_of_features(dataset)
    ]


def _version(manifest: Manifest) -> dict[str, Any]:
    counts = manifest.counts
    return {
        "version": manifest.version,
        "lineage": manifest.lineage,
        "created": manifest.created,
        "samples": counts["samples"],
        "rejects": counts["rejects"],
        "classes": len(manifest.classes),
        "splits": counts["splits"],
    }


def _head(manifest: Manifest) -> dict[str, Any]:
    return {
        "source": manifest.source["uri"],
        "preprocessing": structure(manifest.preprocessing, StoredView).as_dict(),
        "labels": manifest.counts["labels"],
        "splits": manifest.counts["splits"],
        "repeats": manifest.counts["repeats"],
        "rejects_by_reason": manifest.counts["rejects_by_reason"],
        "left_out": manifest.counts.get("left_out", {}),
        "forgotten": len(manifest.forgotten),
    }


def _shards(store: Store, manifest: Manifest) -> dict[str, Any]:
    dataset = Dataset(store, manifest)
    index = dataset.index
    shards = dataset.objects_of("shard")
    # Duplicates share the row of a shard.
    live = group_by(index, ["shard", "row"]).aggregate([])
    return {
        "shards": len(shards),
        "shard_bytes": sum(ref.bytes for ref in shards),
        "dead_rows": sum(ref.rows for ref in shards) - len(live),
        "by_class": _by_class(index),
        "notes": few_notes(index.column("label"), index.column("split")),
    }


def _by_class(index: pa.Table) -> dict[str, dict[str, int]]:
    """Return the labelled samples of each class in each split, the largest class first."""
    labelled = index.filter(pc.is_valid(index.column("label")))
    counts = group_by(labelled, ["label", "split"]).aggregate([("uri", "count")])
    table: dict[str, dict[str, int]] = {}
    for row in counts.to_pylist():
        splits = table.setdefault(row["label"], dict.fromkeys(SPLITS, 0))
        if row["split"] is not None:  # null: held out
            splits[row["split"]] = row["uri_count"]
    return dict(sorted(table.items(), key=lambda item: (-sum(item[1].values()), item[0])))


def _predictions(config: StatusConfig, store: Store) -> dict[str, Any]:
    manifest = require_manifest(store)
    summary: dict[str, Any] = {
        "predictions": store.root,
        "version": manifest.version,
        "current": manifest.current,
    }
    if config.gc:
        collected = collect(store, config.keep, config.drop_plans)
        summary |= {"withdrawn": collected.versions, "removed": collected.objects}

    summary["partitions"] = [
        {"partition": name, **{field: getattr(partition, field) for field in _PARTITION_FIELDS}}
        for name, partition in manifest.partitions.items()
    ]
    summary["plans"] = _plans(store, stored_plans(store))
    if config.verify:
        summary |= _verification(verify(store, manifest), "partitions")
    return summary


def _models(config: StatusConfig, store: Store) -> dict[str, Any]:
    if config.keep:
        raise RequestError(f"--keep {config.keep}: versions of a model are not deleted")
    summary: dict[str, Any] = {"models": store.root}
    if config.gc:
        collected = collect_models(store, config.drop_plans)
        summary |= {"runs_dropped": collected.runs, "removed": collected.objects}

    models = [get_model(store, number) for number in versions(store, VERSIONS)]
    summary["champion"] = find_champion(store)
    summary["versions"] = [
        {
            "version": model.version,
            "id": model.id,
            "backbone": model.architecture.backbone,
            "classes": len(model.classes),
            "run": model.lineage.get("run", ""),
        }
        for model in models
    ]
    summary["unfinished"] = [
        {"run": run.run, "dataset": run.dataset, "dataset_version": run.dataset_version}
        for run in unfinished_runs(store)
    ]
    summary["unpublished"] = len(unpublished_runs(store))
    summary["comparisons"] = sum(
        info.name.endswith("/table.json") for info in store.walk(COMPARISONS)
    )
    if config.verify:
        owners = ((model.version, [model.weights, model.golden]) for model in models)
        summary |= _verification(verify_objects(store, needed_objects(owners)), "versions")
    return summary


def _plans(store: Store, plans: Iterable[StoredUnits]) -> list[dict[str, Any]]:
    done = committed_units(store)
    return [
        {"plan": plan.name, "units": len(plan.units), "committed": len(plan.units & done)}
        for plan in plans
    ]


def _add_verification(summary: dict[str, Any], result: Verification[str]) -> None:
    """Add the verification of features to that of the dataset."""
    of_features = _verification(result, "keys")
    summary["verified"] += of_features["verified"]
    summary["features_damaged"] = of_features["damaged"]
    summary["exit_code"] = max(summary["exit_code"], of_features["exit_code"])


def _verification(result: Verification[Any], owners: str) -> dict[str, Any]:
    """Return the JSON form; `owners` is the key for what needs a damaged object."""
    damaged = [
        {"path": damage.path, "error": damage.error, owners: damage.needed_by}
        for damage in result.damaged
    ]
    return {"verified": result.read, "damaged": damaged, "exit_code": int(bool(damaged))}
