"""`afinar label SOURCE PREDICTIONS …`, and `afinar label PICTURE …` for one picture."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import (
    format_counts,
    format_left_out,
    format_notes,
    format_table,
    format_time,
)
from afinar.config.label import LabelConfig
from afinar.errors import ShortfallError
from afinar.execution.executor import JobExecutor

logger = logging.getLogger(__name__)

INTERRUPTED = "the same command continues"
EXAMPLE = """afinar label archive/ predictions/ --model models/@champion
  afinar label archive/scan.jpg --model models/@champion"""


def configure(argv: list[str]) -> LabelConfig:
    """Parse the arguments."""
    return parse(LabelConfig, argv, "afinar label", EXAMPLE)


def run(config: LabelConfig) -> dict[str, Any]:
    """Label the pictures that are not labelled yet, or one picture, and return the summary.

    Raises ShortfallError if too many pictures were rejected; the run is recorded all the same.
    """
    if config.is_one_picture:
        from afinar.labelling.predict_one import label_one

        return label_one(config.source, config.model, config.top_k)

    from afinar.labelling.driver import LabelJob, run_labelling
    from afinar.labelling.estimate import forecast_error, read_forecast
    from afinar.report.labelling import record_labelling
    from afinar.report.review import review_page

    executor = JobExecutor(config)
    forecast = None
    if config.forecast:
        forecast = read_forecast(config.forecast, LabelJob(config, executor))

    outcome = run_labelling(config, executor, review_page)
    summary = asdict(outcome.summary)
    if forecast and not outcome.shortfall:
        summary["forecast"] = forecast_error(forecast, summary)
    summary = record_labelling(config, outcome, summary)

    if outcome.shortfall:
        if summary["report"]:
            logger.info(f"report: {summary['report']}")
        raise ShortfallError(outcome.shortfall)
    return summary


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    if "picture" in summary:
        return _describe_one_picture(summary)

    listed = (
        f"{summary['listed']} = {summary['labelled']} labelled + {summary['rejected']} rejected + "
        f"{summary['skipped']} skipped"
    )
    rows = [
        ("predictions", summary["predictions"]),
        ("model", summary["model"]),
        ("listed", listed),
        *format_left_out(summary["left_out"]),
        ("labels", format_counts(summary["labels"])),
        ("rejects", format_counts(summary["rejects_by_reason"])),
    ]
    if summary["single"]:
        rows.append(("single file", summary["single"]))
        rows.append(("", f"{summary['single'].removesuffix('.parquet')}.csv"))
    if summary["review"]:
        queue = f"{summary['abstained']} pictures: {summary['review']}/index.html"
        rows.append(("to review", queue))

    rows.append(("time", format_time(summary)))
    if summary["report"]:
        rows.append(("report", summary["report"]))
    if "forecast" in summary:
        forecast = summary["forecast"]
        difference = f"{forecast['seconds']:.1f} s: the run took {forecast['error']:+.0%}"
        rows.append(("forecast", difference))
    return "\n".join([format_table(rows), *format_notes(summary["notes"])])


def _describe_one_picture(summary: dict[str, Any]) -> str:
    facts = format_table([("picture", summary["picture"]), ("model", summary["model"])])
    classes = [
        (prediction["label"], f"{prediction['score']:7.2%}")
        for prediction in summary["predictions"]
    ]
    return f"{facts}\n\n{format_table(classes)}"
