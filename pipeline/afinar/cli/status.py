"""`afinar status PATH`: what a dataset or a prediction folder holds, whether it is whole, what of it nothing needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from afinar.cli import predictions_status
from afinar.cli.arguments import parse
from afinar.cli.run_folder import format_counts, size, table
from afinar.config.checks import check_status
from afinar.config.jobs import StatusConfig

if TYPE_CHECKING:
    from afinar.dataset.manifest import Manifest
    from afinar.storage.store import Store

EXAMPLE = "afinar status dataset/ --verify"


def configure(words: list[str]) -> StatusConfig:
    """Parse and check."""
    config = parse(StatusConfig, words, "afinar status", EXAMPLE)
    check_status(config)
    return config


def run(config: StatusConfig) -> dict[str, Any]:
    """Look, and where asked verify and clean up. Exit code 1 where an object is damaged."""
    from afinar.dataset.gc import is_dataset
    from afinar.storage.open import open_store

    store = open_store(config.path)
    return _dataset(config, store) if is_dataset(store) else predictions_status.look(config, store)


def _dataset(config: StatusConfig, store: Store) -> dict[str, Any]:
    from afinar.dataset.gc import collect, drop_plans, manifests, open_plans, verify

    kept = manifests(store)
    summary: dict[str, Any] = {"dataset": store.root}
    if config.gc:
        withdrawn = (
            {manifest.version for manifest in kept[: -config.keep]} if config.keep else set()
        )
        dropped = drop_plans(store, kept[-1].version) if config.drop_plans else []
        summary |= {"withdrawn": sorted(withdrawn), "removed": dropped + collect(store, withdrawn)}
        kept = [manifest for manifest in kept if manifest.version not in withdrawn]
    summary |= {"versions": [_version(manifest) for manifest in kept], **_head(kept[-1])}
    summary["plans"] = [
        _plan(store, plan.name, plan.units) for plan in open_plans(store, kept[-1].version)
    ]
    if config.verify:
        read, damage = verify(store, kept)
        summary |= {
            "verified": read,
            "damaged": [asdict(found) for found in damage],
            "exit_code": int(bool(damage)),
        }
        if damage:
            return summary  # what the damaged objects say of the shards is not to be trusted
    return summary | _shards(store, kept[-1])


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
        "preprocessing": manifest.preprocessing,
        "labels": manifest.counts["labels"],
        "splits": manifest.counts["splits"],
        "repeats": manifest.counts["repeats"],
        "rejects_by_reason": manifest.counts["rejects_by_reason"],
        "forgotten": len(manifest.forgotten),
    }


def _shards(store: Store, manifest: Manifest) -> dict[str, Any]:
    from afinar.dataset.manifest import get_objects, read_rows
    from afinar.dataset.schema import INDEX

    shards = get_objects(store, manifest, "shard")
    places = read_rows(store, manifest, "index", INDEX).group_by(["shard", "row"]).aggregate([])
    return {
        "shards": len(shards),
        "shard_bytes": sum(ref.bytes for ref in shards),
        "dead_rows": sum(ref.rows for ref in shards) - len(places),
    }


def _plan(store: Store, name: str, units: frozenset[str]) -> dict[str, Any]:
    from afinar.storage.commit import committed_units

    return {"plan": name, "units": len(units), "committed": len(units & committed_units(store))}


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    if "predictions" in summary:
        return predictions_status.describe(summary)
    view = summary["preprocessing"]
    rows = [
        ("dataset", summary["dataset"]),
        ("source", summary["source"]),
        ("stored", f"{view['size']} x {view['size']} px, {view['fit']}, {view['store']}"),
        ("classes", format_counts(summary["labels"])),
        ("splits", format_counts(summary["splits"])),
        ("repeats", format_counts(summary["repeats"])),
        ("rejects", format_counts(summary["rejects_by_reason"])),
    ]
    if "shards" in summary:
        rows.append(
            (
                "shards",
                f"{summary['shards']}, {size(summary['shard_bytes'])}, {summary['dead_rows']} rows dead",
            )
        )
    for plan in summary["plans"]:
        rows.append(
            (
                "unfinished",
                f"{plan['plan']}: {plan['committed']} of {plan['units']} units committed",
            )
        )
    if "removed" in summary:
        rows.append(
            (
                "removed",
                f"{len(summary['removed'])} objects; versions withdrawn: {summary['withdrawn']}",
            )
        )
    if "verified" in summary:
        rows.append(
            ("verified", f"{summary['verified']} objects, {len(summary['damaged'])} damaged")
        )
    rows += [
        ("damaged", f"{found['error']} (versions {found['versions']})")
        for found in summary.get("damaged", [])
    ]
    versions = [
        f"  {entry['version']:>4}  {entry['created']}  {entry['samples']:>9} samples  {entry['rejects']:>6} rejects  "
        f"{entry['classes']:>4} classes  {format_counts(entry['splits'])}"
        for entry in summary["versions"]
    ]
    return "\n".join([table(rows), "versions", *versions])
