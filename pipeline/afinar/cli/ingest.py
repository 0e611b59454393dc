"""`afinar ingest SOURCE DATASET`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_counts, format_left_out, format_table
from afinar.config.ingest import IngestConfig
from afinar.execution.executor import JobExecutor
from afinar.logs import wrap
from afinar.units.progress import limiting_phase

INTERRUPTED = "the same command continues"
EXAMPLE = "afinar ingest pictures/ dataset/ --size 224 --split 0.7,0.15,0.15"


def configure(argv: list[str]) -> IngestConfig:
    """Parse the arguments."""
    return parse(IngestConfig, argv, "afinar ingest", EXAMPLE)


def run(config: IngestConfig) -> dict[str, Any]:
    """Update the dataset and return the summary; a run that published something is recorded."""
    from afinar.ingestion.driver import run_ingest
    from afinar.logs import log_settings
    from afinar.report.run_folder import record_run
    from afinar.storage.names import new_run

    outcome = run_ingest(config, JobExecutor(config))
    summary = asdict(outcome.summary)
    if outcome.published:
        record_run(config.dataset, log_settings().run or new_run(), config, summary)
    return summary


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
    time = f"{summary['seconds']:.1f} s, {summary['images_per_second']:.0f} pictures/s"

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
    return "\n".join([format_table(rows), *map(wrap, summary["notes"])])
