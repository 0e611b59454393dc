"""`afinar plan ingest …` and `afinar plan label …`: estimate the cost of a job from a sample."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import (
    format_counts,
    format_left_out,
    format_notes,
    format_size,
    format_table,
)
from afinar.config.base import cluster_address
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.errors import RequestError
from afinar.execution.choice import INGESTED, PREDICTED, choose_for_units, this_machine
from afinar.execution.executor import asks_for_ray
from afinar.units.estimate import Launch, launch_on_cluster
from afinar.units.progress import format_duration

EXAMPLE = "afinar plan ingest s3://bucket/pictures s3://bucket/dataset --size 224 --workers 64"
LABEL_EXAMPLE = (
    "afinar plan label s3://bucket/scans s3://bucket/predictions --model models/@champion "
    "--workers 64"
)


def configure(argv: list[str]) -> IngestConfig | LabelConfig:
    """Parse the arguments of the job to estimate."""
    parser = argparse.ArgumentParser(
        prog="afinar plan",
        description="Estimate time, requests and bytes of a job from a sample; write nothing.",
        epilog=f"Examples: {EXAMPLE}\n          {LABEL_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", choices=["ingest", "label"], help="job to estimate")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="arguments of that job; --help lists them"
    )
    if not argv or argv[0] in {"-h", "--help"}:
        parser.print_help()
        raise SystemExit(0)
    job, arguments = argv[0], argv[1:] or ["--help"]
    if job == "label":
        return _configure_label(arguments)
    if job != "ingest":
        raise RequestError(
            f"afinar plan {job}: write afinar plan ingest or afinar plan label, and then the "
            "arguments of that job"
        )
    return parse(IngestConfig, arguments, "afinar plan ingest", EXAMPLE, _description(job))


def _description(job: str) -> str:
    return (
        f"Estimate time, requests and bytes of `afinar {job}` with the same arguments. A sample of "
        f"the pictures is read and nothing is written."
    )


def _configure_label(argv: list[str]) -> LabelConfig:
    config = parse(LabelConfig, argv, "afinar plan label", LABEL_EXAMPLE, _description("label"))
    if config.is_one_picture:
        raise RequestError("one picture needs no plan: name where PREDICTIONS would go")
    return config


def run(config: IngestConfig | LabelConfig) -> dict[str, Any]:
    """Time a sample of the work and return the estimate. Writes nothing."""
    is_labelling = isinstance(config, LabelConfig)

    def choose_launch(pictures: int, units: int) -> Launch:
        if cluster_address(config.address) is not None:
            return launch_on_cluster(pictures, units)
        choice = choose_for_units(
            pictures,
            units,
            few=PREDICTED if is_labelling else INGESTED,
            workers=config.workers,
            asks_for_ray=asks_for_ray(config.address),
            uses_gpus=is_labelling,
            machine=this_machine(),
        )
        return Launch(
            starts_ray=not choice.without_ray, processes=choice.processes, cores=choice.cores
        )

    if isinstance(config, LabelConfig):
        from afinar.labelling.estimate import forecast_label

        return asdict(forecast_label(config, choose_launch))
    from afinar.ingestion.estimate import forecast_ingest

    return asdict(forecast_ingest(config, choose_launch))


def describe(summary: dict[str, Any]) -> str:
    """Return the estimate as text."""
    listing_time = format_duration(summary["listing_seconds"])
    read = format_size(summary["bytes_read"])
    time = format_duration(summary["seconds"])
    phases = ", ".join(f"{name} {share:.0%}" for name, share in summary["stages"].items())
    rejects = format_counts(summary["sample_rejects"])
    workers = "1 worker" if summary["workers"] == 1 else f"{summary['workers']} workers"

    rows = [
        ("listed", f"{summary['listed']} pictures in {listing_time}"),
        *format_left_out(summary["left_out"]),
        ("to read", f"{summary['to_read']} in {summary['units']} units, {read}"),
        ("to write", f"about {format_size(summary['bytes_written'])}"),
        ("requests", format_counts(summary["requests"])),
        (
            "time",
            f"about {time} with {workers} as fast as this one; "
            f"{format_duration(summary['start_seconds'])} of it until they are ready",
        ),
        ("rate", f"{summary['images_per_second']:.0f} pictures/s; {phases}"),
        ("sample", f"{summary['sampled']} pictures; rejected: {rejects}"),
    ]
    return "\n".join([format_table(rows), *format_notes(summary["notes"])])
