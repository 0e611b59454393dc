"""Pages of nightly retraining: one page for each night, and an index of all nights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from afinar.dataset.reader import Dataset
from afinar.evaluation.intervals import Interval
from afinar.report.charts import Chart, Key, axis, exact_axis
from afinar.report.pieces import Tile, tiles
from afinar.report.rendering import template

NIGHTS: Final = 400
"""Nights of the index, the newest ones."""

_CHARTED: Final = 90  # nights of a chart
_STYLES: Final = {"promoted": "", "no change": "open", "held": "open"}


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One step of a night: what it did, seconds, and bytes that it wrote (None: not counted)."""

    name: str
    text: str
    seconds: float
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One check of the gate."""

    name: str
    verdict: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NightPage:
    """Contents of the page of a night.

    `numbers` and `facts` are names with values. `held` and `foreign` are galleries; `held_total`
    counts all pictures that are held out, and `form` is the file in which to correct them.
    """

    night: str
    outcome: str
    reasons: list[str]
    numbers: list[tuple[str, str]]
    steps: list[StepRow]
    facts: list[tuple[str, str]]
    checks: list[CheckRow] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    held: list[Tile] = field(default_factory=list)
    held_total: int = 0
    form: str = ""
    foreign: list[Tile] = field(default_factory=list)

    @property
    def style(self) -> str:
        """CSS class of the outcome."""
        return _STYLES.get(self.outcome, "fails")


@dataclass(frozen=True, kw_only=True)
class NightRow:
    """One night of the index.

    `score` is the accuracy of the model that was live in the morning, `candidate_score` that of the
    candidate; both are measured on pictures that no gate uses. `bytes` counts what was written.
    """

    night: str
    outcome: str
    reason: str
    champion: int | None
    candidate: int | None
    score: Interval | None
    candidate_score: Interval | None
    decision: str
    samples: int | None
    new: int | None
    seconds: float
    bytes: int
    alarms: int

    @property
    def style(self) -> str:
        """CSS class of the outcome."""
        return _STYLES.get(self.outcome, "fails")


@dataclass(frozen=True, kw_only=True)
class AliasRow:
    """One move of an alias."""

    created: str
    alias: str
    version: int
    actor: str
    why: str


@dataclass(frozen=True, kw_only=True)
class FrozenTestRow:
    """A frozen test set: its age in days, and the level of the next decision on it."""

    number: int
    created: str
    age_days: int
    pictures: int
    decisions: int
    next_level: float
    why: str


def night_page(page: NightPage) -> str:
    """Return the page of a night."""
    return template("night.html.j2").render(title=f"Night {page.night}", page=page)


def nights_page(
    root: str,
    nights: Sequence[NightRow],
    aliases: Sequence[AliasRow],
    test_sets: Sequence[FrozenTestRow],
) -> str:
    """Return the index of all nights; `nights` are in their order, the oldest first."""
    return template("nights.html.j2").render(
        title=f"Nights in {root}",
        root=root,
        total=len(nights),
        nights=list(nights)[: -NIGHTS - 1 : -1],
        aliases=list(aliases)[::-1],
        test_sets=list(test_sets)[::-1],
        charts=_charts(list(nights)[-_CHARTED:]),
    )


def picture_tiles(
    dataset: Dataset, uris: Sequence[str], captions: Sequence[str], limit: int
) -> list[Tile]:
    """Return tiles of pictures that the dataset has, at most `limit`."""
    places = {uri: row for row, uri in enumerate(dataset.index.column("uri").to_pylist())}
    chosen = [
        (places[uri], caption) for uri, caption in zip(uris, captions, strict=True) if uri in places
    ][:limit]
    return tiles(dataset, [row for row, _ in chosen], [caption for _, caption in chosen])


def _charts(nights: list[NightRow]) -> list[Chart]:
    """Return accuracy, size of the dataset and seconds by night."""
    if len(nights) < 2:
        return []
    x = exact_axis("night", 1, len(nights), integer=True)
    charts = [_accuracy_chart(nights, x)]
    for title, label, values in (
        ("Labelled pictures by night", "pictures", [row.samples for row in nights]),
        ("Seconds by night", "seconds", [row.seconds for row in nights]),
    ):
        known = [(number, value) for number, value in enumerate(values, 1) if value is not None]
        if not known:
            continue
        chart = Chart(title=title, x=x, y=axis(label, 0, max(1.0, *(value for _, value in known))))
        chart.line([(float(number), float(value)) for number, value in known], 1)
        chart.dots(
            (
                (float(number), float(value), f"{nights[number - 1].night}: {value:,.6g} {label}")
                for number, value in known
            ),
            1,
        )
        charts.append(chart)
    return [chart for chart in charts if chart.marks]


def _accuracy_chart(nights: list[NightRow], x: Any) -> Chart:
    chart_rows = [
        (number, row, score, colour)
        for number, row in enumerate(nights, 1)
        for score, colour in ((row.candidate_score, 2), (row.score, 1))
        if score is not None
    ]
    lowest = min((score.low for _, _, score, _ in chart_rows), default=0.0)
    chart = Chart(
        title="Accuracy on pictures that no gate uses, with 95 % intervals",
        x=x,
        y=axis("accuracy", 100 * lowest, 100, unit=" %"),
    )
    for number, row, score, colour in chart_rows:
        name = "champion" if colour == 1 else "candidate"
        # Two marks of one night lie side by side.
        place = number + (0.12 if colour == 2 else -0.12)
        chart.interval(
            place,
            (100 * score.value, 100 * score.low, 100 * score.high),
            f"{row.night}, {name}: {score.value:.1%} ({score.low:.1%} to {score.high:.1%})",
            colour,
        )
    chart.keys += [Key("champion in the morning", 1, "dot"), Key("candidate", 2, "dot")]
    return chart
