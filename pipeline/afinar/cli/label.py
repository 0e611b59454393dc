"""`afinar label SOURCE PREDICTIONS --model MODELS@champion`, and `afinar label PICTURE - --model MODELS@champion`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from afinar.cli.arguments import parse
from afinar.cli.deferred_executor import DeferredExecutor
from afinar.cli.run_folder import as_json, format_counts, new_run, record_run, table
from afinar.config.label import LabelConfig
from afinar.errors import ShortfallError

if TYPE_CHECKING:
    from afinar.labelling.driver import Labelling
    from afinar.predictions.review_queue import ReviewQueue

logger = logging.getLogger(__name__)

EXAMPLE = """afinar label archive/ predictions/ --model models/@champion
  afinar label archive/scan.jpg - --model models/@champion"""


def configure(words: list[str]) -> LabelConfig:
    """Parse and check."""
    config = parse(LabelConfig, words, "afinar label", EXAMPLE)
    return config


def run(config: LabelConfig) -> dict[str, Any]:
    """Label what is not labelled yet, or one picture."""
    if config.predictions == "-":
        from afinar.labelling.predict_one import label_one

        return label_one(config.source, config.model, config.top_k)
    from afinar.labelling.driver import Labelling
    from afinar.labelling.estimate import read_forecast

    job = Labelling(config, DeferredExecutor(config), _gallery)
    forecast = read_forecast(config.forecast, job) if config.forecast else None
    try:
        job.run()
    except ShortfallError:
        if report := _record(config, job).get(
            "report"
        ):  # over its reject budget it has labelled all the same
            logger.info(f"the run's report: {report}")
        raise
    return _record(config, job, forecast)


def _record(
    config: LabelConfig, labelling: Labelling, forecast: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Leave the run's folder with its report, where the run published anything; the summary."""
    from afinar.labelling.estimate import forecast_error

    summary = as_json(labelling.summary) if labelling.summary else {}
    if forecast:
        summary["forecast"] = forecast_error(forecast, summary)
    if labelling.report and summary:
        from afinar.report.labelling import LabelRun, label_page
        from afinar.storage.open import open_store

        run, store = new_run(), open_store(config.predictions)
        summary["report"] = store.uri(f"runs/{run}/report.html")
        page = label_page(
            LabelRun(
                run=run, source=labelling.source.uri, partition=labelling.partition, summary=summary,
                account=labelling.report,
            )
        )  # fmt: skip
        store.put_if_absent(f"runs/{run}/report.html", page.encode())
        record_run(config.predictions, run, config, summary)
    return summary


def _gallery(queue: ReviewQueue) -> str:
    from afinar.report.review import review_page

    return review_page(queue)


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    if "picture" in summary:
        return _describe_one(summary)
    rows = [
        ("predictions", summary["predictions"]),
        ("model", summary["model"]),
        (
            "listed",
            f"{summary['listed']} = {summary['labelled']} labelled + {summary['rejected']} rejected + "
            f"{summary['skipped']} skipped",
        ),
        ("labels", format_counts(summary["labels"])),
        ("rejects", format_counts(summary["rejects_by_reason"])),
        *_on_request(summary),
        ("time", f"{summary['seconds']:.1f} s, {summary['images_per_second']:.0f} pictures/s"),
        *([("report", summary["report"])] if summary["report"] else []),
    ]
    if "forecast" in summary:
        rows.append(
            ("forecast", "{seconds:.1f} s: the run took {error:+.0%}".format(**summary["forecast"]))
        )
    return "\n".join([table(rows), *summary["notes"]])


def _on_request(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if summary["single"]:
        rows.append(("single file", summary["single"]))
    if summary["review"]:
        rows.append(
            ("to review", f"{summary['abstained']} pictures: {summary['review']}/index.html")
        )
    return rows


def _describe_one(summary: dict[str, Any]) -> str:
    found = [(one["label"], f"{one['score']:7.2%}") for one in summary["predictions"]]
    return "\n".join(
        [table([("picture", summary["picture"]), ("model", summary["model"])]), "", table(found)]
    )
