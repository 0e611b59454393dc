"""The watch of a night: tonight's new labelled pictures, answered by the champion.

The champion labels the new pictures into `<nights>/watch`. Of classes and folders where it
contradicts labels more often than usual, the contradicted pictures are held out: they are in no
training and no test until their label is changed, or confirmed in `<nights>/reviewed.csv`. The
list of them, `<night>/review.csv`, has the columns of a form that `afinar ingest --add-labels`
reads.
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.nightly import WatchRules
from afinar.dataset.reader import open_dataset
from afinar.errors import ModelError, NotFoundError, RequestError
from afinar.evaluation.watch import (
    Contradictions,
    LabelAlarm,
    add_up,
    count_contradictions,
    watch_labels,
)
from afinar.nightly.evidence import Answers
from afinar.nightly.inputs import watch_inputs_of
from afinar.nightly.jobs import Jobs
from afinar.nightly.records import Night, NightRecord, put_list
from afinar.predictions.manifest import read_manifest
from afinar.predictions.part_reader import open_predictions
from afinar.sources.tables import read_table
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.csv_cells import escape_formulas
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.store import Store

FOLDER: Final = "watch"
REVIEWED: Final = "reviewed.csv"

_HELD: Final = pa.schema([(name, pa.string()) for name in ("uri", "label", "predicted")])
_REFERENCE: Final = 60  # earlier pictures with which tonight's are compared

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class NewPictures:
    """Labelled samples that are new in a dataset version, and earlier ones to compare them with.

    Rows have sample_id, uri, label and split. `reference` are pictures of validation and test,
    which no training has used, chosen by their content. `labels` counts the labels of the version
    before.
    """

    rows: list[Row]
    reference: list[Row]
    labels: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The champion as MODELS@VERSION, its classes, and its answers for its own test pictures."""

    spec: str
    classes: set[str]
    answers: Answers


def watch(
    night: Night,
    earlier: list[NightRecord],
    *,
    dataset: str,
    versions: tuple[int, int],
    champion: Champion,
    rules: WatchRules,
    jobs: Jobs,
) -> dict[str, Any]:
    """Label the pictures that are new in a dataset version with the champion; return the record.

    The record has at least new, counts, alarms, held and notes.
    """
    record: dict[str, Any] = {"new": 0, "counts": {}, "alarms": [], "held": None, "notes": []}
    try:
        new = read_new(dataset, *versions)
    except RequestError as error:
        note = f"the pictures of tonight were not compared with version {versions[0]}: {error}"
        return record | {"notes": [note]}
    record["new"] = len(new.rows)
    if not new.rows or not (rules.labels or rules.inputs):
        return record

    try:
        answers = answer(
            night, new.rows + (new.reference if rules.inputs else []), champion.spec, jobs
        )
    except ModelError as error:
        return record | {"notes": [f"the champion cannot label tonight's pictures: {error}"]}
    rows = [(row, answers[row["uri"]]) for row in new.rows if row["uri"] in answers]
    if rules.labels:
        # It cannot contradict a label that it does not know.
        known = [pair for pair in rows if pair[0]["label"] in champion.classes]
        record |= _watch_labels(night, earlier, known, champion.answers)
    if rules.inputs:
        reference = [answers[row["uri"]] for row in new.reference if row["uri"] in answers]
        record |= watch_inputs_of(rows, reference, new.labels, champion.answers)
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


def answer(night: Night, rows: list[Row], champion: str, jobs: Jobs) -> dict[str, Row]:
    """Label pictures with the champion; return its rows by uri, with features as numpy arrays.

    Pictures that it has labelled in earlier nights are not read again.
    """
    uris = sorted({row["uri"] for row in rows})
    pictures = put_list(night.store, f"{night.name}/lists", uris)
    folder = night.store.uri(FOLDER)
    outcome = jobs.label(pictures, folder, champion, features=True)
    table = open_predictions(folder, outcome.partition).table
    table = table.filter(pc.is_in(table.column("uri"), pa.array(uris, pa.string())))

    features = table.column("features").combine_chunks()
    values = features.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    answers = table.select(["uri", "sample_id", "label", "score"]).to_pylist()
    return {
        row["uri"]: {**row, "features": value} for row, value in zip(answers, values, strict=True)
    }


def read_new(dataset: str, before: int, now: int) -> NewPictures:
    """Return the labelled samples of a version whose picture or label the one before lacks.

    Raises RequestError if one of the versions was deleted.
    """
    uri = normalize_uri(dataset)
    old, new = (
        open_dataset(uri, version=version).index.select(["sample_id", "uri", "label", "split"])
        for version in (before, now)
    )
    current = new.filter(pc.fill_null(pc.not_equal(new.column("label"), ""), False))
    known = pc.is_in(_sample_and_label(current), _sample_and_label(old))
    is_unused = pc.is_in(current.column("split"), pa.array(["validation", "test"]))
    unused = current.filter(pc.and_(known, is_unused)).sort_by("sample_id")
    labels = old.column("label").drop_null().value_counts().to_pylist()
    return NewPictures(
        rows=current.filter(pc.invert(known)).to_pylist(),
        reference=unused.slice(0, _REFERENCE).to_pylist(),
        labels={count["values"]: count["counts"] for count in labels if count["values"]},
    )


def _sample_and_label(rows: pa.Table) -> pa.ChunkedArray:
    """Return the pair of each row as one text. A hash has no blank."""
    labels = pc.fill_null(rows.column("label"), "")
    return pc.binary_join_element_wise(rows.column("sample_id"), labels, " ")


def _watch_labels(
    night: Night, earlier: list[NightRecord], rows: list[tuple[Row, Row]], own: Answers
) -> dict[str, Any]:
    """Return counts by group, the alarms, and the object with the held pictures."""
    groups = {
        "class": [f"class {row['label']}" for row, _ in rows],
        "folder": [f"folder {row['uri'].rpartition('/')[0]}" for row, _ in rows],
    }
    labels = [row["label"] for row, _ in rows]
    predicted = [answer["label"] for _, answer in rows]
    scores = [answer["score"] for _, answer in rows]
    on_test = _count_own(own)

    counts: dict[str, Contradictions] = {}
    alarms: list[LabelAlarm] = []
    for kind, names in groups.items():
        tonight = count_contradictions(names, labels, predicted, scores)
        nights = _count_earlier(earlier, kind)
        usual = _merged(nights, on_test) if kind == "class" else nights
        overall = add_up([*nights.values(), *on_test.values()])
        alarms += watch_labels(tonight, usual, overall)
        counts |= tonight

    alarmed = {alarm.group for alarm in alarms}
    held = [
        {"uri": row["uri"], "label": row["label"], "predicted": answer["label"]}
        for position, (row, answer) in enumerate(rows)
        if row["label"] != answer["label"]
        and alarmed & {names[position] for names in groups.values()}
    ]
    return {
        "counts": {name: asdict(count) for name, count in counts.items() if name not in alarmed},
        "alarms": [alarm.sentence for alarm in alarms],
        "held": _put_held(night, held),
        "held_pictures": len(held),
    }


def _count_own(own: Answers) -> dict[str, Contradictions]:
    """Return the champion's contradictions of the labels of its own test pictures, by class."""
    ids = list(own.labels)
    labels = [own.labels[name] for name in ids]
    return count_contradictions(
        [f"class {label}" for label in labels],
        labels,
        [own.predicted[name] for name in ids],
        [own.scores[name] for name in ids],
    )


def _count_earlier(earlier: list[NightRecord], kind: str) -> dict[str, Contradictions]:
    """Return the counts of earlier nights, without groups that raised an alarm."""
    counts: dict[str, Contradictions] = {}
    for night in earlier:
        for name, count in night.steps.get("watch", {}).get("counts", {}).items():
            if name.startswith(f"{kind} "):
                counts = _merged(counts, {name: Contradictions(**count)})
    return counts


def _merged(
    first: dict[str, Contradictions], second: dict[str, Contradictions]
) -> dict[str, Contradictions]:
    names = first.keys() | second.keys()
    return {
        name: add_up(counts[name] for counts in (first, second) if name in counts) for name in names
    }


def _put_held(night: Night, held: list[dict[str, str]]) -> str | None:
    """Store the held pictures, and a form for their labels; return the name of the former."""
    if not held:
        return None
    name = f"{night.name}/held.parquet"
    night.store.put_if_absent(name, to_parquet(pa.Table.from_pylist(held, schema=_HELD)))
    form = io.StringIO()
    writer = csv.writer(form, lineterminator="\n")
    writer.writerow(["uri", "label", "given", "predicted"])
    for row in held:
        cells = escape_formulas(pa.array([row["uri"], row["label"], row["predicted"]]))
        uri, given, predicted = cells.to_pylist()
        writer.writerow([uri, "", given, predicted])
    night.store.put_if_absent(f"{night.name}/review.csv", form.getvalue().encode())
    return name


def _reviewed(store: Store) -> set[str]:
    try:
        store.stat(REVIEWED)
    except NotFoundError:
        return set()
    return set(read_table(REVIEWED, store.uri(REVIEWED), "uri").column("uri").to_pylist())
