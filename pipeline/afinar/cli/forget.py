"""`afinar forget DATASET URI…`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_table
from afinar.config.forget import ForgetConfig
from afinar.execution.executor import RayExecutor

EXAMPLE = "afinar forget dataset/ cats/0001.jpg s3://bucket/pictures/cats/0002.jpg"


def configure(argv: list[str]) -> ForgetConfig:
    """Parse the arguments."""
    return parse(ForgetConfig, argv, "afinar forget", EXAMPLE)


def run(config: ForgetConfig) -> dict[str, Any]:
    """Erase the pictures and return the summary."""
    from afinar.ingest.forget import run_forget

    return asdict(run_forget(config, RayExecutor.for_job(config)))


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    versions = ", ".join(map(str, summary["versions_withdrawn"])) or "none"
    rows = [
        ("dataset", f"{summary['dataset']}, version {summary['version']}"),
        ("erased", f"{summary['pictures']} pictures with {summary['contents']} distinct contents"),
        ("shards", f"{summary['shards_rewritten']} rewritten or dropped"),
        ("deleted", f"versions: {versions}; {summary['objects_removed']} objects"),
    ]
    return "\n".join([format_table(rows), *summary["notes"]])
