"""`afinar ingest SOURCE DATASET`."""

from __future__ import annotations

from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import (
    format_counts,
    format_left_out,
    format_notes,
    format_table,
    format_time,
)
from afinar.config.ingest import IngestConfig
from afinar.execution.executor import JobExecutor
from afinar.units.progress import limiting_phase

INTERRUPTED = "the same command continues"
EXAMPLE = "afinar ingest pictures/ dataset/ --size 224 --split 0.7,0.15,0.15"


def configure(argv: list[str]) -> IngestConfig:
    """Parse the arguments."""
    return parse(IngestConfig, argv, "afinar ingest", EXAMPLE)


def run(config: IngestConfig) -> dict[str, Any]:
    """Update the dataset and return the summary; a run that published something is recorded."""
    from afinar.ingestion.driver import run_ingest
    from afinar.report.dataset import record_ingest

    return record_ingest(config, run_ingest(config, JobExecutor(config)))


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    listed = (
        f"{summary['listed']} = {summary['added']} added + {summary['changed']} changed + "
        f"{summary['unchanged']} unchanged + {summary['rejects']} rejected"
    )
    changes = (
        f"{summary['removed']} removed, {summary['relabelled']} relabelled, "
        f"{summary['renamed']} renamed"
    )
    limit = limiting_phase(summary["stages"])
    time = format_time(summary)

    rows = [
        ("dataset", f"{summary['dataset']}, version {summary['version']}"),
        ("listed", listed),
        *format_left_out(summary["left_out"]),
        ("samples", f"{summary['samples']} ({format_counts(summary['splits'])})"),
        *([("since", changes)] if summary["version"] > 1 else []),
        ("classes", ", ".join(summary["classes"]) or "none"),
        ("rejects", format_counts(summary["rejects_by_reason"])),
        ("time", f"{time}, limited by {limit}" if limit else time),
    ]
    if summary["report"]:
        rows.append(("report", summary["report"]))
    return "\n".join([format_table(rows), *format_notes(summary["notes"])])
