"""`afinar models MODELS [list | show | promote | rollback | export]`."""

from __future__ import annotations

from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_columns, format_table
from afinar.config.models import ModelsConfig
from afinar.logs import wrap

EXAMPLE = "afinar models models/ promote 3 --why 'fewer mistakes on the new camera'"


def configure(argv: list[str]) -> ModelsConfig:
    """Parse the arguments."""
    return parse(ModelsConfig, argv, "afinar models", EXAMPLE)


def run(config: ModelsConfig) -> dict[str, Any]:
    """List, show, promote, roll back or export, and return the summary."""
    from afinar.report.index import write_index
    from afinar.report.models import run_models

    summary = run_models(config)
    if config.action in {"promote", "rollback"}:
        write_index(config.models)  # it marks the champion
    return summary


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    if "file" in summary:
        return (
            f"{summary['file']}: {summary['format']}, {summary['bytes'] / 1e6:.1f} MB, "
            f"of {summary['models']}@{summary['id']}\n"
            f"golden samples: probabilities within {summary['difference']:.1g}"
        )
    return _list(summary) if "versions" in summary else _show(summary)


def _list(summary: dict[str, Any]) -> str:
    rows = [("", "model", "regime", "backbone", "dataset", "validation", "test", "trained")]
    for row in summary["versions"]:
        rows.append(
            (
                "*" if row["version"] == summary["champion"] else "",
                row["id"],
                row["regime"],
                row["backbone"],
                f"version {row['dataset_version']}" if row["dataset_version"] else "",
                _share(row["val_top1"]),
                _share(row["test_top1"]),
                row["created"][:16].replace("T", " "),
            )
        )
    why = f": {summary['why']}" if summary["why"] else ""
    champion = "no champion: choose one with `afinar models MODELS promote NUMBER`"
    if summary["champion"] is not None:
        champion = f"* champion, version {summary['champion']}{why}"
    return "\n".join([format_columns(rows), "", wrap(champion)])


def _show(summary: dict[str, Any]) -> str:
    champion = " (champion)" if summary["champion"] else ""
    test = _share(summary["test_top1"])
    if summary["test_interval"]:
        low, high = summary["test_interval"]
        test += f" (95 % interval {low:.1%} to {high:.1%})"
    lineage = summary["lineage"]
    rows = [
        ("model", f"{summary['models']}@{summary['id']}{champion}"),
        ("network", f"{summary['backbone']} cut at {summary['cut']}, {summary['regime']}"),
        ("classes", ", ".join(summary["class_names"])),
        ("validation", _share(summary["val_top1"])),
        ("test", test),
        ("dataset", f"{summary['dataset']}, version {summary['dataset_version']}"),
        ("weights", lineage.get("weights") or "random"),
        ("trained", summary["created"]),
        ("report", summary["report"]),
    ]
    rows += [
        ("promoted", " ".join(filter(None, (moved["created"], moved["actor"], moved["why"]))))
        for moved in summary["promotions"]
    ]
    return format_table([(name, value) for name, value in rows if value])


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
