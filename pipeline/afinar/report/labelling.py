"""Page and run folder of a labelling. The plot is SVG in the template, without matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from afinar.config.label import LabelConfig
from afinar.labelling.driver import LabelOutcome
from afinar.labelling.run_report import RunReport
from afinar.labelling.stats import BINS, LabelStats
from afinar.logs import log_settings
from afinar.report.rendering import template
from afinar.report.run_folder import record_run, report_uri
from afinar.storage.names import new_run
from afinar.units.progress import format_duration, limiting_phase

_WIDTH: Final = 900  # of the histogram, in SVG units
_HEIGHT: Final = 220
_TICKS: Final = 5


@dataclass(frozen=True, kw_only=True)
class LabelRun:
    """One run: its name, its source, the partition that it wrote, its summary as JSON values."""

    run: str
    source: str
    partition: str
    summary: dict[str, Any]
    report: RunReport


def record_labelling(
    config: LabelConfig, outcome: LabelOutcome, summary: dict[str, Any]
) -> dict[str, Any]:
    """Write the run folder of a labelling, and return its summary with the URI of the page.

    A run that published nothing leaves no folder, and its `report` stays None.
    """
    if outcome.report is None:
        return summary
    run = log_settings().run or new_run()
    summary = {**summary, "report": report_uri(config.predictions, run)}
    page = label_page(
        LabelRun(
            run=run,
            source=outcome.source,
            partition=outcome.partition,
            summary=summary,
            report=outcome.report,
        )
    )
    record_run(config.predictions, run, config, summary, page)

    return summary


def label_page(run: LabelRun) -> str:
    """Return the page of a run."""
    summary, stats, baseline = run.summary, run.report.stats.labels, run.report.baseline
    before = baseline.labels if baseline else None

    return template("labelling.html.j2").render(
        title=f"Labels of {run.source}",
        run=run.run,
        summary=summary,
        numbers=_headline_numbers(summary, stats),
        drift=run.report.drift(),
        before=baseline.name if baseline else None,
        classes=_classes(stats, before),
        stats=stats,
        histogram=_histogram(stats, before),
        reasons=_reasons(run),
        phases=_phases(summary["stages"]),
        limit=limiting_phase(summary["stages"]),
        time=format_duration(summary["seconds"]),
        folder=f"{summary['predictions']}/parts/model={run.partition}",
        snippets=_snippets(summary["predictions"], run.partition),
    )


def _headline_numbers(summary: dict[str, Any], stats: LabelStats) -> list[tuple[str, str]]:
    counts = ("listed", "labelled", "rejected", "skipped")
    numbers = [(name, f"{summary[name]:,}") for name in counts]
    if stats.mean is not None:
        numbers.append(("mean confidence", f"{stats.mean:.1%}"))
    return [*numbers, ("pictures per second", f"{summary['images_per_second']:,.0f}")]


def _classes(now: LabelStats, before: LabelStats | None) -> list[dict[str, Any]]:
    """Return a row for each class, the most frequent first.

    `bar` (this run) and `mark` (the baseline) are lengths in per cent of the longest bar.
    """
    then = before if before and before.pictures else None
    names = {*now.labels, *(then.labels if then else ())}
    rows = [
        {
            "name": name,
            "count": now.labels.get(name, 0),
            "share": _share(now.labels.get(name, 0), now.pictures),
            "before": _share(then.labels.get(name, 0), then.pictures) if then else None,
        }
        for name in names
    ]

    longest = max((max(row["share"], row["before"] or 0.0) for row in rows), default=0.0) or 1.0
    for row in rows:
        row["bar"] = 100 * row["share"] / longest
        row["mark"] = None if row["before"] is None else 100 * row["before"] / longest
    return sorted(rows, key=lambda row: (-row["count"], row["name"]))


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _shares(stats: LabelStats) -> list[float]:
    return [_share(count, stats.pictures) for count in stats.histogram]


def _histogram(now: LabelStats, before: LabelStats | None) -> dict[str, Any]:
    """Return the bars of this run and the step line of the baseline, in SVG units."""
    shares = _shares(now)
    shares_before = _shares(before) if before and before.pictures else []
    highest = max([*shares, *shares_before]) or 1.0
    width = _WIDTH / BINS

    def y(share: float) -> float:
        return round(_HEIGHT * (1 - share / highest), 2)

    bars = [
        {
            "x": round(number * width + 1, 2),
            "y": y(share),
            "width": round(width - 2, 2),
            "height": round(_HEIGHT - y(share), 2),
            "text": f"{number / BINS:.2f} to {(number + 1) / BINS:.2f}: "
            f"{now.histogram[number]:,} pictures, {share:.1%}",
        }
        for number, share in enumerate(shares)
    ]

    # Two points for each bin: its left and its right edge.
    line = [
        f"{round(edge * width, 2)},{y(share)}"
        for number, share in enumerate(shares_before)
        for edge in (number, number + 1)
    ]
    ticks = [
        (round(_WIDTH * tick / _TICKS, 2), f"{tick / _TICKS:.1f}") for tick in range(_TICKS + 1)
    ]
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "bars": bars,
        "line": " ".join(line),
        "ticks": ticks,
        "top": highest,
    }


def _reasons(run: LabelRun) -> list[dict[str, Any]]:
    """Return a row for each reason, the most frequent first, with a few rejects of this run."""
    counts: dict[str, int] = run.summary["rejects_by_reason"]
    examples = run.report.stats.examples
    rows = [
        {"reason": reason, "count": count, "examples": examples.get(reason, [])}
        for reason, count in counts.items()
    ]
    return sorted(rows, key=lambda row: -row["count"])


def _phases(seconds_by_phase: dict[str, float]) -> list[dict[str, Any]]:
    total = sum(seconds_by_phase.values()) or 1.0
    rows = [
        {"name": name, "seconds": seconds, "share": seconds / total}
        for name, seconds in seconds_by_phase.items()
    ]
    return sorted(rows, key=lambda row: -row["share"])


def _snippets(predictions: str, partition: str) -> list[tuple[str, str]]:
    """Return titles and code that reads the predictions."""
    parts = f"{predictions}/parts/model={partition}"
    table = f"afinar.open_predictions({predictions!r}, {partition!r}).table"

    return [
        (
            "Python: every picture exactly once, even while a job is running",
            f"import afinar\n\n{table}",
        ),
        ("pandas", f"import pandas as pd\n\npd.read_parquet({parts!r})"),
        (
            "DuckDB",
            "SELECT label, count(*) AS pictures, avg(score) "
            f"FROM {_quote_sql(f'{parts}/*.parquet')} GROUP BY ALL",
        ),
    ]


def _quote_sql(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
