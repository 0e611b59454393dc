"""`afinar plan ingest SOURCE DATASET`, `afinar plan label SOURCE PREDICTIONS`: what a job would take, from a sample."""

from __future__ import annotations

from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.run_folder import as_json, format_counts, size, table
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.errors import RequestError
from afinar.units.progress import format_duration

EXAMPLE = "afinar plan ingest s3://bucket/pictures s3://bucket/dataset --size 224 --workers 64"
LABEL_EXAMPLE = "afinar plan label s3://bucket/scans s3://bucket/predictions --model models/@champion --workers 64"


def configure(words: list[str]) -> IngestConfig | LabelConfig:
    """Parse and check the planned job's own words."""
    if words and words[0] == "label":
        return _configure_label(words[1:])
    if words and words[0] != "ingest" and not words[0].startswith("-"):
        raise RequestError(
            f"afinar plan {words[0]}: write afinar plan ingest or afinar plan label, with the words of that job"
        )
    config = parse(IngestConfig, words[1:] or ["--help"], "afinar plan ingest", EXAMPLE)
    return config


def _configure_label(words: list[str]) -> LabelConfig:
    config = parse(LabelConfig, words, "afinar plan label", LABEL_EXAMPLE)
    if config.predictions == "-":
        raise RequestError("one picture needs no plan: name where PREDICTIONS would go")
    return config


def run(config: IngestConfig | LabelConfig) -> dict[str, Any]:
    """Sample, measure, predict. Writes nothing."""
    if isinstance(config, LabelConfig):
        from afinar.labelling.estimate import forecast_label

        return as_json(forecast_label(config))
    from afinar.ingest.estimate import forecast_ingest

    return as_json(forecast_ingest(config))


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in summary["stages"].items())
    rows = [
        (
            "listed",
            f"{summary['listed']} pictures in {format_duration(summary['listing_seconds'])}",
        ),
        (
            "to read",
            f"{summary['to_read']} in {summary['units']} units, {size(summary['bytes_read'])}",
        ),
        ("to write", f"about {size(summary['bytes_written'])}"),
        ("requests", format_counts(summary["requests"])),
        (
            "time",
            f"about {format_duration(summary['seconds'])} with {summary['workers']} workers as fast as this one",
        ),
        ("rate", f"{summary['images_per_second']:.0f} pictures/s; {shares}"),
        (
            "sample",
            f"{summary['sampled']} pictures; rejected: {format_counts(summary['sample_rejects'])}",
        ),
    ]
    return "\n".join([table(rows), *summary["notes"]])
