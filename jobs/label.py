"""`afinar label SOURCE PREDICTIONS --model MODELS@champion`."""

from __future__ import annotations

from typing import Any

from jobs.command_line import parse
from jobs.lazy_ray import LazyRay
from jobs.records import as_json, counted, new_run, record_run, table
from pipeline.config import LabelConfig, check_label

EXAMPLE = "afinar label archive/ predictions/ --model models/@champion"


def configure(words: list[str]) -> LabelConfig:
    """Parse and check."""
    config = parse(LabelConfig, words, "afinar label", EXAMPLE)
    check_label(config)
    return config


def run(config: LabelConfig) -> dict[str, Any]:
    """Label what is not labelled yet."""
    from pipeline.labelling.job import Labelling

    summary = as_json(Labelling(config, LazyRay(config)).run())
    if summary["units_run"]:
        record_run(config.predictions, new_run(), config, summary)
    return summary


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    rows = [
        ("predictions", summary["predictions"]),
        ("model", summary["model"]),
        (
            "listed",
            f"{summary['listed']} = {summary['labelled']} labelled + {summary['rejected']} rejected + "
            f"{summary['skipped']} skipped",
        ),
        ("labels", counted(summary["labels"])),
        ("rejects", counted(summary["rejects_by_reason"])),
        ("time", f"{summary['seconds']:.1f} s, {summary['images_per_second']:.0f} pictures/s"),
    ]
    return "\n".join([table(rows), *summary["notes"]])
