"""Versions of a model as JSON values: the list, and one version with its metrics and origin."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from afinar.config.models import ModelsConfig
from afinar.errors import RequestError
from afinar.evaluation.intervals import wilson
from afinar.models.registry.aliases import promote, promotions, version_before
from afinar.models.registry.versions import (
    VERSIONS,
    ModelVersion,
    StoredModel,
    find_champion,
    find_model,
    get_model,
)
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.store import Store
from afinar.storage.versions import versions


def run_models(config: ModelsConfig) -> dict[str, Any]:
    """Carry out the action and return the summary. Raises RequestError if there is no version."""
    root = normalize_uri(config.models)
    store = open_store(root)
    if not versions(store, VERSIONS):
        raise RequestError(
            f"{store.root} holds no model: make one with `afinar train DATASET {store.root}`"
        )
    if config.action == "show":
        return _shown(store, find_model(f"{root}@{config.version or 'champion'}").version)
    if config.action == "export":
        return _exported(find_model(f"{root}@{config.version or 'champion'}"), config)
    if config.action == "promote":
        version = find_model(f"{root}@{config.version}").version
        promote(store, version.version, config.why or "promoted by hand")
    if config.action == "rollback":
        number = version_before(store)
        get_model(store, number)  # it can be read
        promote(store, number, config.why or "rolled back by hand")
    return _listed(store)


def model_row(version: ModelVersion) -> dict[str, Any]:
    """Return what a list of versions shows of one; metrics that it lacks are None."""
    validation, test = (version.metrics.get(split) or {} for split in ("val", "test"))
    trained_on = version.lineage.get("dataset") or {}
    return {
        "version": version.version,
        "id": version.id,
        "backbone": version.architecture.backbone,
        "cut": version.architecture.cut,
        "regime": version.regime,
        "classes": len(version.classes),
        "dataset": trained_on.get("uri"),
        "dataset_version": trained_on.get("version"),
        "val_top1": validation.get("top1"),
        "test_top1": test.get("top1"),
        "test_interval": _interval(test),
        "created": created_at(version.lineage.get("run", "")),
        "run": version.lineage.get("run", ""),
    }


def _listed(store: Store) -> dict[str, Any]:
    rows = [model_row(get_model(store, number)) for number in versions(store, VERSIONS)]
    moved = promotions(store)
    return {
        "models": store.root,
        "champion": find_champion(store),
        "why": moved[-1].why if moved else "",
        "versions": rows,
    }


def _shown(store: Store, version: ModelVersion) -> dict[str, Any]:
    run = version.lineage.get("run", "")
    return {
        "models": store.root,
        **model_row(version),
        "champion": find_champion(store) == version.version,
        "promotions": [
            {"why": moved.why, "created": moved.created, "actor": moved.actor}
            for moved in promotions(store)
            if moved.version == version.version
        ],
        "class_names": version.classes,
        "metrics": version.metrics,
        "temperature": version.temperature,
        "architecture": version.architecture.as_dict(),
        "lineage": version.lineage,
        "report": store.uri(f"{run}/report.html") if run else "",
    }


def _exported(model: StoredModel, config: ModelsConfig) -> dict[str, Any]:
    from afinar.models.registry.export import export_model  # imports torch

    exported = export_model(*model, config.format, config.out)
    return {
        "models": model.store.root,
        "id": model.version.id,
        "format": config.format,
        "file": exported.path,
        "bytes": exported.bytes,
        "difference": exported.difference,
    }


def _interval(metrics: dict[str, Any]) -> tuple[float, float] | None:
    """Return the 95 % interval (Wilson) of an accuracy, None if its record lacks the counts."""
    samples, top1 = metrics.get("samples"), metrics.get("top1")
    if not isinstance(samples, int) or not isinstance(top1, float) or samples < 1:
        return None
    interval = wilson(round(top1 * samples), samples)
    return interval.low, interval.high


def created_at(run: str) -> str:
    """Return the time at which a run began, ISO 8601 in UTC; empty if its name holds no time."""
    stamp = run.removeprefix("runs/").partition("-")[0]
    try:
        began = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return ""
    return began.isoformat(timespec="seconds")
