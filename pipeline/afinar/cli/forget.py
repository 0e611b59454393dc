"""`afinar forget DATASET|PREDICTIONS URI…`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_notes, format_table
from afinar.config.forget import ForgetConfig
from afinar.execution.executor import JobExecutor

EXAMPLE = "afinar forget dataset/ cats/0001.jpg s3://bucket/pictures/cats/0002.jpg"


def configure(argv: list[str]) -> ForgetConfig:
    """Parse the arguments."""
    return parse(ForgetConfig, argv, "afinar forget", EXAMPLE)


def run(config: ForgetConfig) -> dict[str, Any]:
    """Erase the pictures and return the summary."""
    from afinar.dataset.manifest import is_dataset
    from afinar.storage.open import normalize_uri, open_store

    if is_dataset(open_store(normalize_uri(config.path))):
        from afinar.ingestion.forget import run_forget

        summary = asdict(run_forget(config, JobExecutor(config)))
        from afinar.features.gc import erase_features

        return summary | {"features_erased": erase_features(summary["dataset"])}

    from afinar.labelling.forget import forget_predictions

    return asdict(forget_predictions(config))


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    versions = ", ".join(map(str, summary["versions_withdrawn"])) or "none"
    if "predictions" in summary:
        rows = [
            ("predictions", f"{summary['predictions']}, version {summary['version']}"),
            ("erased", f"{summary['pictures']} rows of {summary['contents']} distinct contents"),
            ("parts", f"{summary['parts_rewritten']} rewritten or dropped"),
            ("exports", f"{summary['files_removed']} files of single/, review/ and runs/ deleted"),
        ]
    else:
        rows = [
            ("dataset", f"{summary['dataset']}, version {summary['version']}"),
            (
                "erased",
                f"{summary['pictures']} pictures with {summary['contents']} distinct contents",
            ),
            ("shards", f"{summary['shards_rewritten']} rewritten or dropped"),
            ("features", f"{summary['features_erased']} rows of cached features erased"),
        ]
    deleted = ("deleted", f"versions: {versions}; {summary['objects_removed']} objects")
    return "\n".join([format_table([*rows, deleted]), *format_notes(summary["notes"])])
