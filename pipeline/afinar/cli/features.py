"""`afinar features DATASET`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_notes, format_size, format_table
from afinar.config.features import FeaturesConfig
from afinar.execution.executor import JobExecutor
from afinar.models.networks.catalogue import require_backbone

INTERRUPTED = "the same command continues"
EXAMPLE = """afinar features dataset/ --backbone resnet18
  afinar features dataset/ --backbone resnet18,efficientnet_b0 --cut auto,resnet18:layer3"""


def configure(argv: list[str]) -> FeaturesConfig:
    """Parse the arguments, and check the names of the backbones."""
    config = parse(FeaturesConfig, argv, "afinar features", EXAMPLE)
    for backbone in config.backbones:
        require_backbone(backbone)
    return config


def run(config: FeaturesConfig) -> dict[str, Any]:
    """Compute the features that are missing and return the summary."""
    # Check the dataset before torch is imported, which takes seconds.
    from afinar.dataset.reader import open_dataset

    open_dataset(config.dataset)

    from afinar.features.driver import run_features

    return asdict(run_features(config, JobExecutor(config)))


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    rows = [
        ("dataset", f"{summary['dataset']}, version {summary['version']}"),
        ("pictures", f"{summary['pictures']} distinct, {summary['read']} read"),
    ]
    for features in summary["features"]:
        rows.append(
            (
                "features",
                f"{features['backbone']} at {features['cut']} ({features['pool']}): "
                f"{features['pictures']} x {features['width']}, {features['computed']} computed, "
                f"{format_size(features['bytes'])}, key {features['key']}",
            )
        )
    rate = f"{summary['seconds']:.1f} s, {summary['images_per_second']:.0f} pictures/s"
    rows.append(("time", rate))
    return "\n".join([format_table(rows), *format_notes(summary["notes"])])
