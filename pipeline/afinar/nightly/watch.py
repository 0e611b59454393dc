"""The watch of a night: tonight's new labelled pictures, answered by the champion.

The champion labels the new pictures into `<nights>/watch`. Of classes and folders where it
contradicts labels more often than usual, the contradicted pictures are held out: they are in no
training and no test until their label is changed, or confirmed in `<nights>/reviewed.csv`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from afinar.config.nightly import WatchRules
from afinar.dataset.reader import open_dataset
from afinar.errors import NotFoundError
from afinar.evaluation.intervals import Interval
from afinar.evaluation.watch import (
    Contradictions,
    LabelAlarm,
    auc,
    count_contradictions,
    watch_inputs,
    watch_labels,
)
from afinar.nightly.jobs import Jobs
from afinar.nightly.records import Night, NightRecord, put_list
from afinar.predictions.manifest import read_manifest
from afinar.predictions.part_reader import open_predictions
from afinar.sources.tables import read_table
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.store import Store
from afinar.training.linear_probe import Features, Objective, fit_head

FOLDER: Final = "watch"
REVIEWED: Final = "reviewed.csv"

_HELD: Final = pa.schema([(name, pa.string()) for name in ("uri", "label", "predicted")])
_MIN_COMPARED: Final = 30  # new pictures, and earlier ones, below which inputs are not compared
_MAX_COMPARED: Final = 2000
_FOLDS: Final = 5
_C: Final = 0.01  # strong regularisation: a few pictures in hundreds of features


def watch(
    night: Night,
    earlier: list[NightRecord],
    *,
    dataset: str,
    versions: tuple[int, int],
    champion: str,
    rules: WatchRules,
    jobs: Jobs,
) -> dict[str, Any]:
    """Label the pictures that are new in a dataset version with the champion; return the record."""
    new = _new_rows(dataset, *versions)
    record: dict[str, Any] = {"new": len(new), "counts": {}, "alarms": [], "notes": []}
    if not new or not (rules.labels or rules.inputs):
        return record

    answers = _answers(night, new, champion, jobs)
    rows = [(row, answers[row["uri"]]) for row in new if row["uri"] in answers]
    if rules.labels:
        record |= _watch_labels(night, earlier, rows)
    if rules.inputs:
        record |= _watch_inputs(night, earlier, rows)
    return record


def held_uris(store: Store, earlier: list[NightRecord], night: Night, dataset: str) -> set[str]:
    """Return the pictures that are held out: held by some night, and not reviewed since.

    A picture counts as reviewed if its label has changed since, or if `reviewed.csv` names it.
    """
    labels: dict[str, str] = {}
    for steps in (*(record.steps for record in earlier), night.done):
        name = steps.get("watch", {}).get("held")
        if name:
            table = from_parquet(store.get(name), uri=store.uri(name))
            columns = (table.column(column).to_pylist() for column in ("uri", "label"))
            labels |= dict(zip(*columns, strict=True))
    if not labels:
        return set()

    index = open_dataset(normalize_uri(dataset)).index.select(["uri", "label"]).to_pylist()
    current = {row["uri"]: row["label"] for row in index}
    reviewed = _reviewed(store)
    return {
        uri for uri, label in labels.items() if current.get(uri) == label and uri not in reviewed
    }


def read_watched(store: Store, model: str) -> pa.Table | None:
    """Return the answers of a model for the pictures of all nights, None if there are none."""
    folder = store.uri(FOLDER)
    names = read_manifest(open_store(folder)).partitions
    partition = next((name for name in names if name.startswith(f"{model}-features")), None)
    return None if partition is None else open_predictions(folder, partition).table


def _new_rows(dataset: str, before: int, now: int) -> list[dict[str, Any]]:
    """Return the labelled samples of a version whose picture or label the one before lacks."""
    columns = ["sample_id", "uri", "label", "split"]
    uri = normalize_uri(dataset)
    old, new = (
        open_dataset(uri, version=version).index.select(columns).to_pylist()
        for version in (before, now)
    )
    known = {(row["sample_id"], row["label"]) for row in old}
    return [row for row in new if row["label"] and (row["sample_id"], row["label"]) not in known]


def _answers(
    night: Night, rows: list[dict[str, Any]], champion: str, jobs: Jobs
) -> dict[str, dict[str, Any]]:
    """Return the champion's answers by uri: label, score and features."""
    uris = sorted(row["uri"] for row in rows)
    pictures = put_list(night.store, f"{night.name}/lists", uris)
    folder = night.store.uri(FOLDER)
    outcome = jobs.label(pictures, folder, champion, features=True)
    table = open_predictions(folder, outcome.partition).table
    wanted = set(uris)
    return {row["uri"]: row for row in table.to_pylist() if row["uri"] in wanted}


def _watch_labels(
    night: Night,
    earlier: list[NightRecord],
    rows: list[tuple[dict[str, Any], dict[str, Any]]],
) -> dict[str, Any]:
    """Return counts by group, the alarms, and the object with the held pictures."""
    groups = {
        "class": [f"class {row['label']}" for row, _ in rows],
        "folder": [f"folder {row['uri'].rpartition('/')[0]}" for row, _ in rows],
    }
    labels = [row["label"] for row, _ in rows]
    predicted = [answer["label"] for _, answer in rows]
    scores = [answer["score"] for _, answer in rows]

    counts: dict[str, Contradictions] = {}
    alarms: list[LabelAlarm] = []
    for kind, names in groups.items():
        tonight = count_contradictions(names, labels, predicted, scores)
        alarms += watch_labels(tonight, _usual(earlier, kind))
        counts |= tonight

    alarmed = {alarm.group for alarm in alarms}
    held = [
        {"uri": row["uri"], "label": row["label"], "predicted": answer["label"]}
        for position, (row, answer) in enumerate(rows)
        if row["label"] != answer["label"]
        and alarmed & {names[position] for names in groups.values()}
    ]
    usual = {name: asdict(count) for name, count in counts.items() if name not in alarmed}
    return {
        "counts": usual,
        "alarms": [alarm.sentence for alarm in alarms],
        "held": _put_held(night, held),
        "held_pictures": len(held),
    }


def _usual(earlier: list[NightRecord], kind: str) -> dict[str, Contradictions]:
    """Return the counts of earlier nights, without groups that raised an alarm."""
    usual: dict[str, Contradictions] = {}
    for night in earlier:
        for name, count in night.steps.get("watch", {}).get("counts", {}).items():
            if name.startswith(f"{kind} "):
                counted = Contradictions(**count)
                usual[name] = counted.plus(usual[name]) if name in usual else counted
    return usual


def _put_held(night: Night, held: list[dict[str, str]]) -> str | None:
    if not held:
        return None
    name = f"{night.name}/held.parquet"
    night.store.put_if_absent(name, to_parquet(pa.Table.from_pylist(held, schema=_HELD)))
    return name


def _reviewed(store: Store) -> set[str]:
    try:
        store.stat(REVIEWED)
    except NotFoundError:
        return set()
    return set(read_table(REVIEWED, store.uri(REVIEWED), "uri").column("uri").to_pylist())


def _watch_inputs(
    night: Night,
    earlier: list[NightRecord],
    rows: list[tuple[dict[str, Any], dict[str, Any]]],
) -> dict[str, Any]:
    """Return sentences on tonight's pictures, whether they are an alarm, and their scores' sum."""
    scores = [answer["score"] for _, answer in rows]
    tonight = np.array([answer["features"] for _, answer in rows], np.float32)
    before = _earlier_features(night, {row["uri"] for row, _ in rows})
    usual = [
        steps["scores"]
        for steps in (record.steps.get("watch", {}) for record in earlier)
        if steps.get("scores")
    ]
    count = sum(n for n, _ in usual)
    expected = float(np.mean(scores)) if len(scores) >= _MIN_COMPARED else None
    usually = sum(total for _, total in usual) / count if count >= _MIN_COMPARED else None
    result = watch_inputs(_separation(before, tonight), expected, usually)
    return {
        "scores": [len(scores), float(np.sum(scores))],
        "notes": result.sentences,
        "input_alarm": result.alarm,
    }


def _earlier_features(night: Night, tonight: set[str]) -> NDArray[np.float32]:
    """Return features of pictures of earlier nights, of the partition that was written last."""
    table = open_predictions(night.store.uri(FOLDER)).table
    rows = [row["features"] for row in table.to_pylist() if row["uri"] not in tonight]
    return np.array(rows[-_MAX_COMPARED:], np.float32)


def _separation(before: NDArray[np.float32], tonight: NDArray[np.float32]) -> Interval | None:
    """Return the out-of-fold AUC of a linear classifier between both, None for few pictures."""
    if min(len(before), len(tonight)) < _MIN_COMPARED:
        return None
    values = torch.from_numpy(np.concatenate([before, tonight[:_MAX_COMPARED]]))
    targets = torch.zeros(len(values), dtype=torch.int64)
    targets[len(before) :] = 1
    folds = torch.randperm(len(values), generator=torch.Generator().manual_seed(0)) % _FOLDS

    scores = torch.zeros(len(values), dtype=torch.float64)
    for fold in range(_FOLDS):
        inside = folds != fold
        head = fit_head(Features(values[inside], targets[inside]), Objective(classes=2), _C)
        logits = head.logits(values[~inside])
        scores[~inside] = logits[:, 1] - logits[:, 0]
    return auc(scores[targets == 0].numpy(), scores[targets == 1].numpy())
