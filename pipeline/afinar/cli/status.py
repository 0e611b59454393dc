"""`afinar status PATH`."""

from __future__ import annotations

from typing import Any, Final

from afinar.cli.arguments import parse
from afinar.cli.formatting import (
    format_columns,
    format_counts,
    format_left_out,
    format_size,
    format_table,
)
from afinar.config.status import StatusConfig
from afinar.logs import wrap
from afinar.sources.entry import SPLITS

_CLASSES: Final = 30  # rows of the table of classes
EXAMPLE = "afinar status dataset/ --verify"


def configure(argv: list[str]) -> StatusConfig:
    """Parse the arguments."""
    return parse(StatusConfig, argv, "afinar status", EXAMPLE)


def run(config: StatusConfig) -> dict[str, Any]:
    """Read the status of a folder, delete and verify as requested, and return the summary."""
    from afinar.report.status import read_status

    return read_status(config)


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    if "predictions" in summary:
        return format_table([*_prediction_rows(summary), *_upkeep_rows(summary)])

    if "models" in summary:
        return format_table([*_model_rows(summary), *_upkeep_rows(summary)])

    table = format_table([*_dataset_rows(summary), *_upkeep_rows(summary)])
    versions = [
        f"  {version['version']:>4}  {version['created']}  {version['samples']:>9} samples  "
        f"{version['rejects']:>6} rejects  {version['classes']:>4} classes  "
        f"{format_counts(version['splits'])}"
        for version in summary["versions"]
    ]
    versions = [wrap(line, indent=8) for line in versions]
    return "\n".join([table, *_class_lines(summary), "versions", *versions])


def _class_lines(summary: dict[str, Any]) -> list[str]:
    """Return a table of classes and splits; of many classes the largest and the smallest."""
    by_class = list(summary.get("by_class", {}).items())
    if not by_class:
        return []
    shown = by_class
    if len(by_class) > _CLASSES:
        shown = by_class[: _CLASSES // 2] + by_class[-_CLASSES // 2 :]
    rows: list[tuple[str, ...]] = [("  class", *SPLITS)]
    rows += [(f"  {name}", *(str(splits[split]) for split in SPLITS)) for name, splits in shown]
    left = len(by_class) - len(shown)
    return [
        *format_columns(rows).splitlines(),
        *([f"  and {left} classes between"] if left else []),
    ]


def _dataset_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    view = summary["preprocessing"]
    rows = [
        ("dataset", summary["dataset"]),
        ("source", summary["source"]),
        ("stored", f"{view['size']} x {view['size']} px, {view['fit']}, {view['store']}"),
        ("classes", format_counts(summary["labels"])),
        ("splits", format_counts(summary["splits"])),
        *_repeats(summary["repeats"]),
        ("rejects", format_counts(summary["rejects_by_reason"])),
        *format_left_out(summary["left_out"]),
    ]
    if "shards" in summary:
        size = format_size(summary["shard_bytes"])
        rows.append(("shards", f"{summary['shards']}, {size}, {summary['dead_rows']} unused rows"))
        rows += [("note", note) for note in summary["notes"]]
    rows += [
        (
            "features",
            f"{features['backbone']} at {features['cut']} ({features['pool']})"
            f"{', ' + features['augmented'] if features['augmented'] else ''}: "
            f"{features['covered']} pictures x {features['width']}, "
            f"{format_size(features['bytes'])}, key {features['key']}",
        )
        for features in summary["features"]
    ]

    return rows


def _repeats(counts: dict[str, int]) -> list[tuple[str, str]]:
    """Return a row for each kind of pictures whose content is repeated; none without any."""
    from afinar.dataset.manifest import REPEATS  # imports pyarrow

    found = [f"{text}: {counts[kind]}" for kind, text in REPEATS.items() if counts.get(kind)]
    return [("" if number else "repeats", text) for number, text in enumerate(found)]


def _prediction_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("predictions", summary["predictions"])]

    for partition in summary["partitions"]:
        newest = " (newest)" if partition["partition"] == summary["current"] else ""
        counts = f"{partition['rows']} pictures labelled, {partition['rejects']} rejected{newest}"
        rows += [
            (partition["partition"], counts),
            ("  model", partition["model"]),
            ("  sources", ", ".join(partition["sources"])),
            ("  last run", format_counts(partition["last_run"])),
            *((f"  {name}", counts) for name, counts in format_left_out(partition["left_out"])),
        ]
    return rows


def _model_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("models", summary["models"])]
    for version in summary["versions"]:
        champion = " (champion)" if version["version"] == summary["champion"] else ""
        network = f"{version['backbone']}, {version['classes']} classes, {version['run']}{champion}"
        rows.append((version["id"], network))
    if summary["comparisons"]:
        rows.append(("comparisons", str(summary["comparisons"])))
    if summary["unpublished"]:
        rows.append(
            (
                "unpublished",
                f"{summary['unpublished']} complete trainings (--gc --drop-plans deletes them)",
            )
        )
    for run in summary["unfinished"]:
        rows.append(
            ("unfinished", f"{run['run']}: {run['dataset']}, version {run['dataset_version']}")
        )
    return rows


def _upkeep_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows on unfinished plans, deletions and verification."""
    rows = [
        ("unfinished", f"{plan['plan']}: {plan['committed']} of {plan['units']} units committed")
        for plan in summary.get("plans", [])
    ]
    if "removed" in summary:
        kind = "runs" if "runs_dropped" in summary else "versions"
        dropped = (
            ", ".join(map(str, summary.get("withdrawn") or summary.get("runs_dropped", [])))
            or "none"
        )
        rows.append(("deleted", f"{len(summary['removed'])} objects; {kind}: {dropped}"))
    if "verified" in summary:
        counts = f"{summary['verified']} objects, {len(summary['damaged'])} damaged"
        rows.append(("verified", counts))

    for damage in summary.get("damaged", []):
        needed_by = damage["versions"] if "versions" in damage else damage["partitions"]
        rows.append(("damaged", f"{damage['error']} (in {', '.join(map(str, needed_by))})"))
    for damage in summary.get("features_damaged", []):
        rows.append(("damaged", f"{damage['error']} (features {', '.join(damage['keys'])})"))
    return rows
