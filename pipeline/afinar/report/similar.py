"""Run folder of `similar`: page, tables, groups, and page and form for corrections of labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.analysis.label_errors import TRULY_WRONG
from afinar.analysis.similar import SimilarOutcome
from afinar.analysis.tables import (
    corrections_csv,
    groups_csv,
    pairs_table,
    pictures_table,
    suspicious_table,
)
from afinar.config.similar import SimilarConfig
from afinar.evaluation.near_duplicates import MIN_CORRELATION, groups_of
from afinar.logs import log_settings
from afinar.predictions.review_queue import FORM
from afinar.report.pieces import Tile, tiles
from afinar.report.rendering import template
from afinar.report.review import PICTURES, Candidate
from afinar.report.run_folder import record_run, report_uri
from afinar.sources.entry import SPLITS
from afinar.storage.arrow import to_parquet
from afinar.storage.names import new_run
from afinar.storage.open import open_store

_GROUPS: Final = 20  # groups of duplicates on the page
_OF_GROUP: Final = 6  # pictures of one group
_LEAKS: Final = 24
_OF_CLASS: Final = 6
_CLASSES: Final = 30  # classes with pictures on the page
_CLUSTERS: Final = 10
_OUTLIERS: Final = 12
_LISTED: Final = 10  # rows that the terminal shows


@dataclass(frozen=True)
class _Tables:
    """The tables of a run, which page and files share."""

    pairs: pa.Table
    pictures: pa.Table
    suspicious: pa.Table


def record_similar(config: SimilarConfig, outcome: SimilarOutcome) -> dict[str, Any]:
    """Write the run folder of an outcome, and return its summary as JSON values."""
    run = log_settings().run or new_run()
    dataset = outcome.dataset.store.root
    store = open_store(dataset)
    pictures = pictures_table(outcome)
    tables = _Tables(pairs_table(outcome), pictures, suspicious_table(pictures))

    contents: dict[str, tuple[str, bytes | memoryview]] = {
        "groups": ("groups.csv", groups_csv(outcome)),
        "pairs": ("pairs.parquet", to_parquet(tables.pairs)),
        "table": ("pictures.parquet", to_parquet(tables.pictures)),
        "corrections": (FORM, corrections_csv(tables.suspicious)),
        "review": ("labels.html", _labels_page(outcome, tables).encode()),
    }
    files = {}
    for name, (file, data) in contents.items():
        path = f"runs/{run}/{file}"
        store.put_if_absent(path, data)
        files[name] = store.uri(path)

    summary = summarize_similar(outcome, tables.pairs, tables.suspicious)
    summary = {**summary, "files": files, "report": report_uri(dataset, run)}
    record_run(dataset, run, config, summary, similar_page(outcome, summary))
    return summary


def summarize_similar(
    outcome: SimilarOutcome, pairs: pa.Table, suspicious: pa.Table
) -> dict[str, Any]:
    """Return counts of an outcome and the first rows of its tables, as JSON values."""
    duplicates, contents = outcome.duplicates, outcome.contents
    groups = groups_of(duplicates.group)
    copied = sum(map(len, groups))
    return {
        "dataset": outcome.dataset.store.root,
        "version": outcome.dataset.manifest.version,
        "pictures": len(outcome.dataset.index),
        "contents": len(contents),
        "features": outcome.features,
        "duplicates": {
            "pairs": len(duplicates.pairs),
            "groups": len(groups),
            "pictures": copied,
            "share": copied / len(contents),
            "candidates": duplicates.candidates,
            "different_labels": len(outcome.contradictions),
        },
        "leaks": _leaks(outcome),
        "labels": _label_counts(outcome),
        "outliers": int(outcome.is_outlier.sum()),
        "weak_clusters": [
            {
                "pictures": len(cluster.rows),
                "accuracy": cluster.accuracy.value,
                "interval": [cluster.accuracy.low, cluster.accuracy.high],
                "p_value": cluster.p_value,
            }
            for cluster in outcome.weak
        ],
        "first_pairs": pairs.slice(0, _LISTED).to_pylist(),
        "first_labels": suspicious.slice(0, _LISTED)
        .select(["uri", "label", "predicted", "label_probability", "predicted_probability"])
        .to_pylist(),
        "seconds": outcome.seconds,
        "notes": outcome.notes,
    }


def _leaks(outcome: SimilarOutcome) -> dict[str, Any]:
    """Return how many pairs lie in different splits, by their splits, and of how many pictures."""
    pairs = outcome.duplicates.pairs[outcome.leaks]
    splits = outcome.contents.splits[pairs]
    names = [" and ".join(SPLITS[number] for number in sorted(row)) for row in splits.tolist()]
    test = SPLITS.index("test")
    return {
        "pairs": len(pairs),
        "by_splits": dict(Counter(names).most_common()),
        "test_pictures": len(np.unique(pairs[splits == test])),
    }


def _label_counts(outcome: SimilarOutcome) -> dict[str, Any] | None:
    judged = outcome.judged
    if judged is None:
        return None
    labels = outcome.contents.labels[judged.contents]
    flagged = labels[judged.scores.is_flagged]
    names = outcome.dataset.classes
    return {
        "judged": len(judged.contents),
        "accuracy": judged.accuracy,
        "flagged": int(judged.scores.is_flagged.sum()),
        "by_class": {names[number]: int((flagged == number).sum()) for number in np.unique(labels)},
    }


def similar_page(outcome: SimilarOutcome, summary: dict[str, Any]) -> str:
    """Return the page of a run."""
    groups = sorted(groups_of(outcome.duplicates.group), key=len, reverse=True)
    return template("similar.html.j2").render(
        title="What the pictures say about their dataset",
        summary=summary,
        numbers=_headline_numbers(summary),
        files=summary["files"],
        leaks=_pair_tiles(outcome, outcome.leaks[: _LEAKS // 2]),
        contradictions=_pair_tiles(outcome, outcome.contradictions[: _LEAKS // 2]),
        groups=[
            {
                "title": f"{len(group)} pictures",
                "tiles": _tiles(outcome, group[:_OF_GROUP], _captions(outcome, group)),
            }
            for group in groups[:_GROUPS]
        ],
        labels=_class_rows(outcome),
        weak=_weak_rows(outcome),
        outliers=_outlier_tiles(outcome),
        truly_wrong=TRULY_WRONG,
        min_correlation=MIN_CORRELATION,
    )


def _headline_numbers(summary: dict[str, Any]) -> list[tuple[str, str]]:
    numbers = [
        ("pictures", f"{summary['pictures']:,}"),
        ("have a near-duplicate", f"{summary['duplicates']['pictures']:,}"),
        ("pairs in different splits", f"{summary['leaks']['pairs']:,}"),
    ]
    if summary["labels"]:
        numbers.append(("labels are probably wrong", f"{summary['labels']['flagged']:,}"))
    return [*numbers, ("outliers", f"{summary['outliers']:,}")]


def _tiles(outcome: SimilarOutcome, contents: list[int], captions: list[str]) -> list[Tile]:
    rows = outcome.contents.rows[contents].tolist()
    return tiles(outcome.dataset, rows, captions[: len(rows)]) if rows else []


def _captions(outcome: SimilarOutcome, contents: list[int]) -> list[str]:
    index = outcome.dataset.index
    rows = index.take(pa.array(outcome.contents.rows[contents])).to_pylist()
    return [
        ", ".join(
            [
                row["uri"].rsplit("/", 1)[-1],
                row["label"] or "no label",
                row["split"] or "held out",
            ]
        )
        for row in rows
    ]


def _pair_tiles(outcome: SimilarOutcome, positions: NDArray[np.int64]) -> list[Tile]:
    """Return tiles of pairs, the two pictures of a pair side by side."""
    contents = outcome.duplicates.pairs[positions].ravel().tolist()
    return _tiles(outcome, contents, _captions(outcome, contents))


def _class_rows(outcome: SimilarOutcome) -> list[dict[str, Any]]:
    """Return a row for each judged class with its most suspicious pictures; most flagged first."""
    judged = outcome.judged
    if judged is None:
        return []
    labels = outcome.contents.labels[judged.contents]
    by_class: dict[int, list[int]] = {int(number): [] for number in np.unique(labels)}
    for place in judged.scores.ranking[judged.scores.is_flagged[judged.scores.ranking]]:
        by_class[int(labels[place])].append(int(place))

    rows: list[dict[str, Any]] = []
    for number, places in sorted(by_class.items(), key=lambda item: -len(item[1])):
        shown = places[:_OF_CLASS] if len(rows) < _CLASSES else []
        rows.append(
            {
                "name": outcome.dataset.classes[number],
                "pictures": int((labels == number).sum()),
                "flagged": len(places),
                "tiles": _tiles(
                    outcome,
                    judged.contents[shown].tolist(),
                    [_predicted_caption(outcome, place) for place in shown],
                ),
            }
        )
    return rows


def _predicted_caption(outcome: SimilarOutcome, place: int) -> str:
    judged = outcome.judged
    assert judged is not None
    other = int(judged.scores.other[place])
    return f"perhaps {judged.classes[other]}, {judged.scores.probabilities[place, other]:.0%}"


def _weak_rows(outcome: SimilarOutcome) -> list[dict[str, Any]]:
    return [
        {
            "title": f"{len(cluster.rows)} pictures, {cluster.accuracy.value:.0%} predicted right "
            f"({cluster.accuracy.low:.0%} – {cluster.accuracy.high:.0%})",
            "tiles": _tiles(
                outcome, cluster.rows[:_OF_GROUP], _captions(outcome, cluster.rows[:_OF_GROUP])
            ),
        }
        for cluster in outcome.weak[:_CLUSTERS]
    ]


def _outlier_tiles(outcome: SimilarOutcome) -> list[Tile]:
    mean = np.where(outcome.is_outlier, outcome.neighbours.distances.mean(axis=1), -1)
    order = np.argsort(-mean, kind="stable")[: min(_OUTLIERS, int(outcome.is_outlier.sum()))]
    contents = order.tolist()
    return _tiles(outcome, contents, _captions(outcome, contents))


def _labels_page(outcome: SimilarOutcome, tables: _Tables) -> str:
    """Return the page on which people correct labels; it saves them as CSV, as a review queue."""
    shown = _fair_share(tables.suspicious, PICTURES)
    positions = pc.index_in(shown.column("uri"), outcome.dataset.index.column("uri")).to_pylist()
    images = tiles(outcome.dataset, positions, [""] * len(positions)) if positions else []
    candidates = [
        _candidate(row, tile.image) for row, tile in zip(shown.to_pylist(), images, strict=True)
    ]
    return template("suspicious.html.j2").render(
        title="Labels that are probably wrong",
        queue={"classes": outcome.dataset.classes},
        candidates=candidates,
        flagged=len(tables.suspicious),
        truly_wrong=TRULY_WRONG,
        table="pictures.parquet",
        form=FORM,
        saved=FORM,
    )


def _fair_share(suspicious: pa.Table, limit: int) -> pa.Table:
    """Return the first rows of each label in turn, then ordered by label and rank."""
    labels = suspicious.column("label").to_pylist()
    seen: Counter[str] = Counter()
    turn = []
    for label in labels:
        turn.append(seen[label])
        seen[label] += 1
    chosen = np.lexsort((np.arange(len(labels)), np.array(turn, dtype=np.int64)))[:limit]
    return suspicious.take(pa.array(np.sort(chosen))).sort_by(
        [("label", "ascending"), ("label_rank", "ascending")]
    )


def _candidate(row: dict[str, Any], image: str) -> Candidate:
    uri: str = row["uri"]
    guesses = [(row["predicted"], row["predicted_probability"])]
    if row["label"] != row["predicted"]:
        guesses.append((row["label"], row["label_probability"]))
    return Candidate(
        uri=uri,
        name="/".join(uri.rsplit("/", 2)[-2:]),
        link=f"file://{quote(uri)}" if uri.startswith("/") else None,
        image=image,
        label=row["label"],
        score=row["predicted_probability"],
        guesses=guesses,
    )
