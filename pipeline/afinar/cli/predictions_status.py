"""What `afinar status` says of a prediction folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from afinar.cli.run_folder import format_counts, table
from afinar.config.jobs import StatusConfig

if TYPE_CHECKING:
    from afinar.storage.store import Store


def look(config: StatusConfig, store: Store) -> dict[str, Any]:
    """Look, and where asked verify and clean up. Exit code 1 where an object is damaged."""
    from afinar.predictions.gc import collect, current_record, partitions, verify
    from afinar.storage.commit import committed_units
    from afinar.units.plan import stored_plans

    number, record = current_record(store)
    summary: dict[str, Any] = {
        "predictions": store.root,
        "version": number,
        "current": record["current"],
    }
    if config.gc:
        withdrawn, removed = collect(store, config.keep, config.drop_plans)
        summary |= {"withdrawn": withdrawn, "removed": removed}
    summary["partitions"] = partitions(record)
    done = committed_units(store)
    summary["plans"] = [
        {"plan": plan.name, "units": len(plan.units), "committed": len(plan.units & done)}
        for plan in stored_plans(store)
    ]
    if config.verify:
        read, damage = verify(store, record)
        summary |= {
            "verified": read,
            "damaged": [asdict(found) for found in damage],
            "exit_code": int(bool(damage)),
        }
    return summary


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    rows = [("predictions", summary["predictions"])]
    for one in summary["partitions"]:
        current = " (newest)" if one["partition"] == summary["current"] else ""
        rows += [
            (
                one["partition"],
                f"{one['rows']} pictures labelled, {one['rejects']} rejected{current}",
            ),
            ("  model", one["model"]),
            ("  sources", ", ".join(one["sources"])),
            ("  last run", format_counts(one["last_run"])),
        ]
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
                f"{len(summary['removed'])} objects; manifests withdrawn: {summary['withdrawn']}",
            )
        )
    if "verified" in summary:
        rows.append(
            ("verified", f"{summary['verified']} objects, {len(summary['damaged'])} damaged")
        )
    rows += [
        ("damaged", f"{one['error']} ({', '.join(one['partitions'])})")
        for one in summary.get("damaged", [])
    ]
    return table(rows)
