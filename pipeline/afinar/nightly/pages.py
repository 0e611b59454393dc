"""Write the pages of nights: the report of each, and the index of all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import AfinarError
from afinar.evaluation.gate import level_of
from afinar.evaluation.intervals import Interval
from afinar.models.registry.aliases import alias_names, promotions
from afinar.nightly.records import (
    TESTS,
    Begin,
    FrozenTest,
    NightRecord,
    count_decisions,
    has_object,
    read_nights,
)
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
from afinar.report.pieces import Tile
from afinar.storage.arrow import from_parquet
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.records import read_record
from afinar.storage.store import Store
from afinar.storage.versions import record_name, versions

logger = logging.getLogger(__name__)

PAGE: Final = "report.html"
INDEX: Final = "index.html"

_LATE_PAGES: Final = 10  # of nights that were killed before they wrote their page
_TILES: Final = 48
_ALPHA: Final = 0.10

Record = dict[str, Any]
Describe = Callable[[Record], str]


def write_pages(store: Store, models: str, dataset: str) -> None:
    """Write the pages that are missing, and the index anew. A failure costs pages, not the night.

    The caller holds the lock, so that nobody else writes them.
    """
    try:
        nights = read_nights(store)
        for record in nights[-_LATE_PAGES:]:
            name = f"{record.night}/{PAGE}"
            if not has_object(store, name):
                store.put_if_absent(name, _night_page(store, record, dataset).encode())
        page = _index_page(store, nights, open_store(normalize_uri(models)))
        store.delete(INDEX)
        store.put_if_absent(INDEX, page.encode())
    except AfinarError as error:
        logger.warning(f"the pages of the nights in {store.root} were not written: {error}")


def _index_page(store: Store, nights: list[NightRecord], models: Store) -> str:
    aliases = [
        AliasRow(
            created=moved.created[:16].replace("T", " "),
            alias=alias,
            version=moved.version,
            actor=moved.actor,
            why=moved.why,
        )
        for alias in alias_names(models)
        for moved in promotions(models, alias)
    ]
    rows: list[NightRow] = []
    score: Interval | None = None
    for record in nights:
        rows.append(_row(record, score))
        score = rows[-1].score
    aliases.sort(key=lambda row: row.created)
    return nights_page(store.root, rows, aliases, _test_sets(store))


def _row(record: NightRecord, before: Interval | None) -> NightRow:
    """Return a night's row; `before` is the champion's accuracy when the night began."""
    gate, ingest = (record.steps.get(name, {}) for name in ("gate", "ingest"))
    candidate_score = _interval(gate.get("score"))
    champion_score = _interval(gate.get("champion_score")) or before
    is_new = record.candidate is not None and record.champion == record.candidate
    test_set = gate.get("test_set")
    return NightRow(
        night=record.night,
        outcome=record.outcome,
        reason="; ".join(record.reasons),
        champion=record.champion,
        candidate=record.candidate,
        score=candidate_score if is_new else champion_score,
        candidate_score=candidate_score if record.candidate and not is_new else None,
        decision="" if test_set is None else f"{gate['decision']} (set {test_set})",
        samples=ingest.get("samples"),
        new=record.steps.get("watch", {}).get("new") or ingest.get("added"),
        seconds=record.seconds,
        bytes=sum(step.get("bytes") or 0 for step in record.steps.values()),
        alarms=len(record.steps.get("watch", {}).get("alarms", [])),
    )


def _test_sets(store: Store) -> list[FrozenTestRow]:
    rows = []
    for number in versions(store, TESTS):
        test = read_record(store, record_name(TESTS, number), FrozenTest)
        decisions = count_decisions(store, test)
        rows.append(
            FrozenTestRow(
                number=number,
                created=test.created,
                age_days=(datetime.now(UTC) - datetime.fromisoformat(test.created)).days,
                pictures=test.pictures,
                decisions=decisions,
                next_level=level_of(decisions + 1, _ALPHA),
                why=test.why,
            )
        )
    return rows


def _night_page(store: Store, record: NightRecord, dataset: str) -> str:
    begin = read_record(store, f"{record.night}/begin.json", Begin)
    steps = record.steps
    watch, gate = steps.get("watch", {}), steps.get("gate", {})
    held, foreign = _galleries(store, watch, steps.get("ingest", {}), dataset)
    return night_page(
        NightPage(
            night=record.night,
            outcome=record.outcome,
            reasons=record.reasons,
            numbers=_numbers(record, gate),
            steps=[
                StepRow(
                    name=name,
                    text=_TEXTS[name](steps[name]) if name in _TEXTS else "",
                    seconds=steps[name].get("seconds", 0.0),
                    bytes=steps[name].get("bytes"),
                )
                for name in _ORDER
                if name in steps
            ],
            facts=_facts(record, begin),
            checks=[CheckRow(**check) for check in gate.get("checks", [])],
            alarms=watch.get("alarms", []),
            notes=watch.get("notes", []),
            held=held,
            held_total=watch.get("held_pictures", 0),
            form=store.uri(f"{record.night}/review.csv"),
            foreign=foreign,
        )
    )


def _galleries(
    store: Store, watch: Record, ingest: Record, dataset: str
) -> tuple[list[Tile], list[Tile]]:
    """Return tiles of the held pictures, and of the most foreign ones."""
    if not (watch.get("held") or watch.get("foreign")):
        return [], []
    opened: Dataset = open_dataset(normalize_uri(dataset), version=ingest["version"])
    held: list[Record] = []
    if watch.get("held"):
        held = from_parquet(store.get(watch["held"]), uri=store.uri(watch["held"])).to_pylist()
    return (
        picture_tiles(
            opened,
            [row["uri"] for row in held],
            [f"label {row['label']}, champion: {row['predicted']}" for row in held],
            _TILES,
        ),
        picture_tiles(
            opened,
            [row["uri"] for row in watch.get("foreign", [])],
            [
                f"{row['label']}, champion: {row['predicted']} ({row['score']:.0%})"
                for row in watch.get("foreign", [])
            ],
            _TILES,
        ),
    )


def _numbers(record: NightRecord, gate: Record) -> list[tuple[str, str]]:
    numbers = [("champion", "none" if record.champion is None else f"version {record.champion}")]
    if record.candidate is not None:
        numbers.append(("candidate", f"version {record.candidate}"))
    for key, name in (
        ("score", "accuracy of the candidate"),
        ("champion_score", "of the champion"),
    ):
        score = _interval(gate.get(key))
        if score:
            label = f"{name} ({score.low:.1%} – {score.high:.1%}), pictures that no gate uses"
            numbers.append((label, f"{score.value:.1%}"))
    if gate.get("gain") is not None:
        label = (
            f"points gained on {gate['test_pictures']:,} pictures of test set {gate['test_set']}"
        )
        numbers.append((label, f"{100 * gate['gain']:+.1f}"))
    if gate.get("p_value") is not None:
        label = f"p-value, level {gate['level']:.2g} (decision {gate['decision']})"
        numbers.append((label, f"{gate['p_value']:.2g}"))
        smallest = gate["smallest_gain"]
        text = "no gain" if smallest is None else f"{100 * smallest:.1f}"
        numbers.append(("smallest gain that could have been shown, points", text))
    numbers.append(("time", f"{record.seconds:.1f} s"))
    return numbers


def _facts(record: NightRecord, begin: Begin) -> list[tuple[str, str]]:
    recipe = begin.recipe
    names = (
        "source",
        "dataset",
        "models",
        "archive",
        "predictions",
        "backbone",
        "weights",
        "regime",
    )
    facts = [("began", record.began), ("ended", record.ended), ("by", begin.actor)]
    facts += [(name, str(recipe[name])) for name in names if recipe.get(name)]
    for name in ("gate", "watch"):
        options = recipe.get(name) or {}
        facts.append((name, ", ".join(f"{key} {value}" for key, value in options.items())))
    return facts


def _interval(record: Record | None) -> Interval | None:
    return Interval(**record) if record else None


def _ingest_text(step: Record) -> str:
    counts = (
        f"{step[name]:,} {name}"
        for name in ("added", "changed", "removed", "relabelled", "unchanged", "rejects")
        if step.get(name)
    )
    return f"dataset version {step['version']}: {', '.join(counts) or 'empty'}"


def _watch_text(step: Record) -> str:
    held = step.get("held_pictures", 0)
    return f"{step['new']:,} new labelled pictures, {held:,} held out"


def _train_text(step: Record) -> str:
    if step.get("candidate") is None:
        return str(step.get("why", ""))
    by = f", trained by night {step['trained_by']}" if "trained_by" in step else ""
    return f"version {step['candidate']}, {step['held']:,} pictures held out{by}"


def _rehearse_text(step: Record) -> str:
    if "skipped" in step:
        return "not needed: other checks refuse the candidate"
    agreement = step.get("agreement")
    same = "" if agreement is None else f", {agreement:.0%} as the champion does"
    return f"{step['labelled']} of {step['pictures']} pictures labelled{same}"


def _label_text(step: Record) -> str:
    if "listed" not in step:
        return "no archive"
    return f"{step['labelled']:,} labelled, {step.get('rejected', 0):,} rejected"


_TEXTS: Final[dict[str, Describe]] = {
    "start": lambda step: (
        "no champion" if step["champion"] is None else f"champion: version {step['champion']}"
    ),
    "ingest": _ingest_text,
    "watch": _watch_text,
    "train": _train_text,
    "evaluate": lambda step: (
        step.get("note") or f"{step['answered']:,} test pictures answered by the champion"
    ),
    "rehearse": _rehearse_text,
    "gate": lambda step: str(step["verdict"]),
    "promote": lambda step: str(step["outcome"]),
    "label": _label_text,
}
_ORDER: Final = tuple(_TEXTS)
