"""`afinar forget DATASET URI…`."""

from __future__ import annotations

from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.deferred_executor import DeferredExecutor
from afinar.cli.run_folder import as_json, table
from afinar.config.forget import ForgetConfig

EXAMPLE = "afinar forget dataset/ cats/0001.jpg s3://bucket/pictures/cats/0002.jpg"


def configure(words: list[str]) -> ForgetConfig:
    """Parse and check."""
    config = parse(ForgetConfig, words, "afinar forget", EXAMPLE)
    return config


def run(config: ForgetConfig) -> dict[str, Any]:
    """Erase."""
    from afinar.ingest.forget import Forget

    return as_json(Forget(config, DeferredExecutor(config)).run())


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    withdrawn = ", ".join(map(str, summary["versions_withdrawn"])) or "none"
    rows = [
        ("dataset", f"{summary['dataset']}, version {summary['version']}"),
        ("erased", f"{summary['pictures']} pictures of {summary['contents']} contents"),
        ("shards", f"{summary['shards_rewritten']} rewritten or dropped"),
        ("withdrawn", f"versions {withdrawn}; {summary['objects_removed']} objects removed"),
    ]
    return "\n".join([table(rows), *summary["notes"]])
