"""`afinar evaluate DATASET --model …`."""

from __future__ import annotations

from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_columns, format_notes, format_table
from afinar.config.evaluate import EvaluateConfig
from afinar.execution.executor import JobExecutor

EXAMPLE = "afinar evaluate dataset/ --model models/@champion"


def configure(argv: list[str]) -> EvaluateConfig:
    """Parse the arguments."""
    return parse(EvaluateConfig, argv, "afinar evaluate", EXAMPLE)


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate the model, write the run folder, and return the summary."""
    from afinar.analysis.evaluate import run_evaluation
    from afinar.report.evaluation import record_evaluation

    return record_evaluation(config, run_evaluation(config, JobExecutor(config)))


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    low, high = summary["top1_interval"]
    metrics = summary["metrics"]
    rows = [
        ("model", summary["model"]),
        ("dataset", f"{summary['dataset']}, version {summary['version']}, {summary['split']}"),
        ("pictures", str(summary["pictures"])),
        ("top-1", f"{summary['top1']:.1%} (95 % interval {low:.1%} to {high:.1%})"),
        ("macro F1", f"{metrics['macro_f1']:.3f}"),
        ("loss", f"{metrics['loss']:.3f}, calibrated {metrics['calibrated']['loss']:.3f}"),
        ("predictions", summary["predictions"]),
        ("time", f"{summary['seconds']} s"),
        ("report", summary["report"]),
    ]
    parts = [format_table(rows)]
    if summary["corruptions"]:
        table = [("corruption", "setting", "accuracy", "difference in points")]
        table += [
            (
                row["name"],
                row["setting"],
                f"{row['accuracy']:.1%}",
                f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to "
                f"{100 * row['high']:+.1f})",
            )
            for row in summary["corruptions"]
        ]
        parts += ["", format_columns(table), ""]
    return "\n".join([*parts, *format_notes(summary["notes"])])
