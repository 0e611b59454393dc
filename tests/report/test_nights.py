"""The pages of nights: what they show, and that names in them are text."""

from __future__ import annotations

from dataclasses import replace

from afinar.evaluation.intervals import Interval
from afinar.report.nights import (
    AliasRow,
    CheckRow,
    FrozenTestRow,
    NightPage,
    NightRow,
    StepRow,
    night_page,
    nights_page,
    picture_tiles,
)
from tests.report.conftest import Compared
from tests.report.html import LONG, NASTY, RIGHT_TO_LEFT, assert_sound


def page_of(compared: Compared) -> NightPage:
    """Return the contents of a page on which everything is shown."""
    uris = compared.dataset.index.column("uri").to_pylist()[:6]
    tiles = picture_tiles(compared.dataset, [*uris, "gone.jpg"], [NASTY] * 7, 48)
    assert len(tiles) == 6, "a picture that was deleted is left out"
    return NightPage(
        night="2026-11-26-1",
        outcome="refused",
        reasons=[f"it has lost classes of the champion: {NASTY}", LONG],
        numbers=[("champion", "version 3"), ("p-value, level 0.05 (decision 1)", "0.2")],
        steps=[
            StepRow(name="ingest", text="dataset version 2: 40 added", seconds=1.25, bytes=2**21),
            StepRow(name="gate", text="refused", seconds=0.1),
        ],
        facts=[("source", f"s3://bucket/{LONG}"), ("by", RIGHT_TO_LEFT)],
        checks=[
            CheckRow(name="accuracy", verdict="promoted", reason="it is better: +2 points"),
            CheckRow(name="classes", verdict="refused", reason=NASTY),
        ],
        alarms=[f"class {NASTY}: the champion contradicts 9 of 10 labels"],
        notes=["too few pictures are new to compare them"],
        held=tiles,
        held_total=120,
        form="s3://bucket/nights/2026-11-26-1/review.csv",
        foreign=tiles[:2],
    )


def rows_of(count: int) -> list[NightRow]:
    """Return nights whose accuracy rises."""
    return [
        NightRow(
            night=f"2026-11-{1 + number % 28:02}-{1 + number // 28}",
            outcome=("promoted", "refused", "no change", "held", "failed")[number % 5],
            reason=NASTY if number == 2 else "it is better: +2.1 points on 800 test pictures",
            champion=1 + number // 5,
            candidate=None if number % 5 == 2 else 2 + number // 5,
            score=Interval(0.8 + number / 500, 0.75 + number / 500, 0.85 + number / 500),
            candidate_score=Interval(0.7, 0.6, 0.8) if number % 5 == 1 else None,
            decision="" if number == 0 else f"{number} (set 1)",
            samples=5000 + 40 * number,
            new=40,
            seconds=300.0 - number,
            bytes=10**7,
            alarms=number % 2,
        )
        for number in range(count)
    ]


def index_of(count: int) -> str:
    alias = AliasRow(
        created="2026-11-01 02:15", alias="champion", version=1, actor=RIGHT_TO_LEFT, why=NASTY
    )
    test_set = FrozenTestRow(
        number=1, created="2026-11-01T02:15:00+00:00", age_days=25, pictures=800, decisions=12,
        next_level=0.1 / 156, why="the first comparison of two models",
    )  # fmt: skip
    return nights_page(f"s3://bucket/{LONG}", rows_of(count), [alias, alias], [test_set])


def test_page_of_a_night_shows_its_decision_and_escapes_names(compared: Compared) -> None:
    reader = assert_sound(night_page(page_of(compared)))
    assert "refused" in reader.words
    assert "lost classes of the champion: <script>alert('x')</script>" in reader.words
    assert "Held out: 120 pictures, 6 shown" in reader.words
    assert reader.table_below("check", "verdict", "reason")[0][:2] == ["accuracy", "passed"]
    assert reader.table_below("step", "result")[0] == [
        "ingest", "dataset version 2: 40 added", "1.2", "2.10"
    ]  # fmt: skip


def test_page_of_a_night_without_change_is_short(compared: Compared) -> None:
    page = replace(
        page_of(compared), outcome="no change", reasons=["no labelled picture has changed"],
        checks=[], alarms=[], notes=[], held=[], held_total=0, foreign=[],
    )  # fmt: skip
    reader = assert_sound(night_page(page))
    assert "Gate" not in reader.words
    assert "Watch" not in reader.words


def test_index_has_every_night_and_charts_of_them() -> None:
    reader = assert_sound(index_of(12))
    table = reader.table_below("night", "outcome")
    assert len(table) == 12
    assert table[0][0] == "2026-11-12-1", "the newest first"
    assert reader.tags.count("svg") == 3
    (test_set,) = reader.table_below("number", "drawn")
    assert test_set[2:6] == ["25 days", "800", "12", "0.00064"]
    assert len(reader.table_below("time (UTC)", "alias")) == 2


def test_index_before_the_first_night_says_so() -> None:
    words = assert_sound(nights_page("nights", [], [], [])).words
    assert "None yet." in words
    assert "No version has an alias yet" in words
