"""`afinar ingest SOURCE DATASET`."""

from __future__ import annotations

from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.deferred_executor import DeferredExecutor
from afinar.cli.run_folder import as_json, format_counts, new_run, record_run, table
from afinar.config.ingest import IngestConfig
from afinar.units.progress import limiting_stage

EXAMPLE = "afinar ingest pictures/ dataset/ --size 224 --split 0.7,0.15,0.15"


def configure(words: list[str]) -> IngestConfig:
    """Parse and check."""
    config = parse(IngestConfig, words, "afinar ingest", EXAMPLE)
    return config


def run(config: IngestConfig) -> dict[str, Any]:
    """Bring the dataset up to date."""
    from afinar.ingest.driver import Ingest

    ingest = Ingest(config, DeferredExecutor(config))
    summary = as_json(ingest.run())
    if not any(note.startswith("nothing to do") for note in summary["notes"]):
        record_run(config.dataset, new_run(), config, summary)
    return summary


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    rows = [
        ("dataset", f"{summary['dataset']}, version {summary['version']}"),
        (
            "listed",
            f"{summary['listed']} = {summary['added']} added + {summary['changed']} changed + "
            f"{summary['unchanged']} unchanged + {summary['rejects']} rejected",
        ),
        ("samples", f"{summary['samples']} ({format_counts(summary['splits'])})"),
        (
            "since",
            f"{summary['removed']} removed, {summary['relabelled']} relabelled, {summary['renamed']} renamed",
        ),
        ("classes", ", ".join(summary["classes"]) or "none"),
        ("rejects", format_counts(summary["rejects_by_reason"])),
        (
            "time",
            f"{summary['seconds']:.1f} s, {summary['images_per_second']:.0f} pictures/s{_limit(summary)}",
        ),
    ]
    if summary["version"] == 1:
        rows = [row for row in rows if row[0] != "since"]
    return "\n".join([table(rows), *summary["notes"]])


def _limit(summary: dict[str, Any]) -> str:
    limit = limiting_stage(summary["stages"])
    return f", limited by {limit}" if limit else ""
