"""`afinar similar DATASET`, and `afinar similar DATASET PICTURE` for one picture."""

from __future__ import annotations

from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_columns, format_counts, format_notes, format_table
from afinar.config.similar import SimilarConfig
from afinar.execution.executor import JobExecutor

INTERRUPTED = "features that were computed are kept; run the same command again"
EXAMPLE = """afinar similar dataset/
  afinar ingest pictures/ dataset/ --group dataset/runs/RUN/groups.csv
  afinar similar dataset/ scan.jpg"""


def configure(argv: list[str]) -> SimilarConfig:
    """Parse the arguments."""
    return parse(SimilarConfig, argv, "afinar similar", EXAMPLE)


def run(config: SimilarConfig) -> dict[str, Any]:
    """Compare all pictures and write the run folder, or find the nearest ones of one picture."""
    if config.picture:
        from afinar.analysis.nearest import find_nearest

        return find_nearest(config)

    from afinar.analysis.similar import run_similar
    from afinar.report.similar import record_similar

    return record_similar(config, run_similar(config, JobExecutor(config)))


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    if "nearest" in summary:
        return _describe_nearest(summary)

    duplicates, leaks = summary["duplicates"], summary["leaks"]
    rows = [
        ("dataset", f"{summary['dataset']}, version {summary['version']}"),
        ("pictures", f"{summary['pictures']} ({summary['contents']} different files)"),
        ("features", f"{summary['features']['backbone']} cut at {summary['features']['cut']}"),
        (
            "duplicates",
            f"{duplicates['pictures']} pictures in {duplicates['groups']} groups "
            f"({duplicates['share']:.1%})",
        ),
        ("leaks", format_counts(leaks["by_splits"])),
        ("outliers", str(summary["outliers"])),
        ("weak groups", str(len(summary["weak_clusters"]))),
    ]
    if summary["labels"]:
        labels = summary["labels"]
        rows += [
            ("labels", f"{labels['flagged']} of {labels['judged']} are probably wrong"),
            ("by class", format_counts(labels["by_class"])),
        ]
    rows += [(name, uri) for name, uri in summary["files"].items()]
    rows += [
        ("time", ", ".join(f"{name} {value} s" for name, value in summary["seconds"].items())),
        ("report", summary["report"]),
    ]
    parts = [format_table(rows), *_first_rows(summary), *format_notes(summary["notes"])]
    if leaks["pairs"]:
        parts.append(
            f"{leaks['test_pictures']} test pictures have a copy in another split: ingest again "
            f"with --group {summary['files']['groups']}"
        )
    return "\n".join(parts)


def _first_rows(summary: dict[str, Any]) -> list[str]:
    """Return the first rows of the tables, each table under a line that names it."""
    lines = []
    if summary["first_pairs"]:
        pairs = [
            (row["split"] or "", row["other_split"] or "", row["uri"], row["other_uri"])
            for row in summary["first_pairs"]
        ]
        lines += ["", "near-duplicates:", format_columns([("split", "split", "", ""), *pairs])]
    if summary["first_labels"]:
        labels = [
            (row["label"], row["predicted"], f"{row['predicted_probability']:.0%}", row["uri"])
            for row in summary["first_labels"]
        ]
        lines += [
            "",
            "labels that are probably wrong (about half of them really are):",
            format_columns([("label", "predicted", "", ""), *labels]),
        ]
    return [*lines, ""] if lines else []


def _describe_nearest(summary: dict[str, Any]) -> str:
    rows = [("distance", "label", "split", "picture")]
    rows += [
        (f"{row['distance']:.3f}", row["label"] or "", row["split"] or "", row["uri"])
        for row in summary["nearest"]
    ]
    facts = format_table([("picture", summary["picture"]), ("dataset", summary["dataset"])])
    return f"{facts}\n\n{format_columns(rows)}"
