"""Versions of a model as JSON values: the list, and one version with its metrics and origin."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from afinar.config.models import ModelsConfig
from afinar.errors import RequestError
from afinar.evaluation.intervals import wilson
from afinar.models.registry.aliases import (
    CHAMPION,
    alias_names,
    alias_version,
    promote,
    promotion_at,
    promotions,
    version_before,
)
from afinar.models.registry.history import (
    decisions,
    require_usable,
    retire,
    retired_versions,
    retirement,
)
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
    wanted = f"{root}@{config.version or CHAMPION}"
    if config.action == "show":
        return _shown_at(store, config) if config.at else _shown(store, find_model(wanted).version)
    if config.action == "export":
        return _exported(find_model(wanted), config)
    if config.action == "retire":
        retire(store, find_model(wanted).version.version, config.why)
    if config.action in {"promote", "rollback"}:
        return _moved(store, wanted, config)
    return _listed(store)


def _moved(store: Store, wanted: str, config: ModelsConfig) -> dict[str, Any]:
    """Move an alias, and return the list with the seconds that it took."""
    started = time.monotonic()
    if config.action == "promote":
        number = find_model(wanted).version.version
        require_usable(store, number)
        promote(store, number, config.why or "promoted by hand", alias=config.alias)
    else:
        retired = retired_versions(store)
        number = version_before(store, config.alias, lambda version: version not in retired)
        get_model(store, number)  # it can be read
        promote(store, number, config.why or "rolled back by hand", alias=config.alias)
    seconds = time.monotonic() - started
    return {**_listed(store), "moved": config.alias, "to": number, "seconds": round(seconds, 3)}


def _shown_at(store: Store, config: ModelsConfig) -> dict[str, Any]:
    """Return the version that an alias stood for at a moment, and since when."""
    alias = config.version or CHAMPION
    assert config.moment is not None, "the configuration is checked"
    promotion = promotion_at(store, alias, config.moment)
    if promotion is None:
        raise RequestError(f"{store.root} had no {alias} at {config.moment.isoformat()}")
    return {
        **_shown(store, get_model(store, promotion.version)),
        "alias": alias,
        "at": config.moment.isoformat(timespec="seconds"),
        "since": promotion.created,
        "why": promotion.why,
    }


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
        "val_interval": _interval(validation),
        "test_top1": test.get("top1"),
        "test_interval": _interval(test),
        "created": created_at(version.lineage.get("run", "")),
        "run": version.lineage.get("run", ""),
    }


def _listed(store: Store) -> dict[str, Any]:
    rows = [model_row(get_model(store, number)) for number in versions(store, VERSIONS)]
    moved = promotions(store)
    retired = retired_versions(store)
    for row in rows:
        row["retired"] = row["version"] in retired
    return {
        "models": store.root,
        "champion": find_champion(store),
        "aliases": {name: alias_version(store, name) for name in alias_names(store)},
        "why": moved[-1].why if moved else "",
        "versions": rows,
    }


def _shown(store: Store, version: ModelVersion) -> dict[str, Any]:
    run = version.lineage.get("run", "")
    retired = retirement(store, version.version)
    return {
        "models": store.root,
        **model_row(version),
        "champion": find_champion(store) == version.version,
        "promotions": [
            {"alias": name, "why": moved.why, "created": moved.created, "actor": moved.actor}
            for name in alias_names(store)
            for moved in promotions(store, name)
            if moved.version == version.version
        ],
        "decisions": [asdict(decision) for decision in decisions(store, version.version)],
        "retired": None if retired is None else asdict(retired),
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
