"""A labelling as one HTML page. Its plots are drawn by the page itself: the driver of a labelling stays small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from afinar.labelling.run_report import RunReport
from afinar.labelling.stats import BINS, LabelStats
from afinar.report.rendering import template
from afinar.units.progress import format_duration, limiting_stage

_WIDTH, _HEIGHT = 900, 220  # of the histogram, in the units of its drawing
_TICKS = 5


@dataclass(frozen=True, kw_only=True)
class LabelRun:
    """What the page tells of: a run's name, what it labelled, into which partition of which folder."""

    run: str
    source: str
    partition: str
    summary: dict[str, Any]
    account: RunReport


def label_page(label: LabelRun) -> str:
    """Render the report of one labelling: `summary` is its LabelSummary, JSON-able."""
    summary, answers = label.summary, label.account.stats.labels
    before = label.account.baseline
    return template("labelling.html.j2").render(
        title=f"Labels of {label.source}",
        run=label.run,
        summary=summary,
        numbers=_numbers(summary, answers),
        drift=label.account.drift(),
        before=before.name if before else None,
        classes=_classes(answers, before.labels if before else None),
        answers=answers,
        histogram=_histogram(answers, before.labels if before else None),
        reasons=_reasons(label),
        stages=_stages(summary["stages"]),
        limit=limiting_stage(summary["stages"]),
        time=format_duration(summary["seconds"]),
        folder=f"{summary['predictions']}/parts/model={label.partition}",
        snippets=_snippets(summary["predictions"], label.partition),
    )


def _numbers(summary: dict[str, Any], answers: LabelStats) -> list[tuple[str, str]]:
    numbers = [
        (name, f"{summary[name]:,}") for name in ("listed", "labelled", "rejected", "skipped")
    ]
    if answers.mean is not None:
        numbers.append(("mean confidence", f"{answers.mean:.1%}"))
    return [*numbers, ("pictures a second", f"{summary['images_per_second']:,.0f}")]


def _classes(now: LabelStats, before: LabelStats | None) -> list[dict[str, Any]]:
    """A row for each class, the most frequent first; `bar` and `mark` are per cent of the longest bar."""
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


def _histogram(now: LabelStats, before: LabelStats | None) -> dict[str, Any]:
    """Places of the histogram's bars and of the line of the run before, in the drawing's units."""
    shares = [_share(count, now.pictures) for count in now.histogram]
    old = (
        [_share(count, before.pictures) for count in before.histogram]
        if before and before.pictures
        else []
    )
    highest = max([*shares, *old]) or 1.0
    wide = _WIDTH / BINS

    def y(share: float) -> float:
        return round(_HEIGHT * (1 - share / highest), 2)

    bars = [
        {
            "x": round(place * wide + 1, 2), "y": y(share), "width": round(wide - 2, 2),
            "height": round(_HEIGHT - y(share), 2),
            "said": f"{place / BINS:.2f} to {(place + 1) / BINS:.2f}: {now.histogram[place]:,} pictures, {share:.1%}",
        }
        for place, share in enumerate(shares)
    ]  # fmt: skip
    line = [
        f"{round((place + end) * wide, 2)},{y(share)}"
        for place, share in enumerate(old)
        for end in (0, 1)
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


def _reasons(label: LabelRun) -> list[dict[str, Any]]:
    """A row for each reason, the most frequent first, with a few of this run's rejects."""
    counts: dict[str, int] = label.summary["rejects_by_reason"]
    rows = [
        {"reason": reason, "count": count, "examples": label.account.stats.examples.get(reason, [])}
        for reason, count in counts.items()
    ]
    return sorted(rows, key=lambda row: -row["count"])


def _stages(stages: dict[str, float]) -> list[dict[str, Any]]:
    total = sum(stages.values()) or 1.0
    rows = [
        {"name": name, "seconds": seconds, "share": seconds / total}
        for name, seconds in stages.items()
    ]
    return sorted(rows, key=lambda row: -row["share"])


def _snippets(predictions: str, partition: str) -> list[tuple[str, str]]:
    parts = f"{predictions}/parts/model={partition}"
    query = f"SELECT label, count(*) AS pictures, avg(score) FROM {_quoted(f'{parts}/*.parquet')} GROUP BY ALL"
    return [
        ("In Python, every picture exactly once, even while a job is running",
         f"import afinar\n\nafinar.open_predictions({predictions!r}, {partition!r}).table"),
        ("pandas", f"import pandas as pd\n\npd.read_parquet({parts!r})"),
        ("DuckDB", query),
    ]  # fmt: skip


def _quoted(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
