"""Results of `similar` as tables, and as the CSV files that `ingest` takes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from afinar.analysis.similar import Judged, SimilarOutcome, merged_groups
from afinar.predictions.review_queue import corrections_form
from afinar.sources.entry import SPLITS
from afinar.storage.csv_cells import escape_formulas

PAIRS: Final = pa.schema(
    [
        ("uri", pa.large_string()),
        ("other_uri", pa.large_string()),
        ("split", pa.string()),
        ("other_split", pa.string()),
        ("label", pa.string()),
        ("other_label", pa.string()),
        ("hash_bits", pa.int32()),
        ("distance", pa.float32()),
        ("correlation", pa.float32()),
    ]
)
"""One pair of near-duplicates.

`hash_bits` is the number of bits in which their perceptual hashes differ, `distance` that of their
features (null if neither is a nearest neighbour of the other), `correlation` that of their
pixels."""

PICTURES: Final = pa.schema(
    [
        ("uri", pa.large_string()),
        ("sample_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("duplicate_group", pa.string()),
        ("nearest_uri", pa.large_string()),
        ("nearest_distance", pa.float32()),
        ("mean_distance", pa.float32()),
        ("is_outlier", pa.bool_()),
        ("predicted", pa.string()),
        ("label_probability", pa.float32()),
        ("predicted_probability", pa.float32()),
        ("label_rank", pa.int64()),
        ("is_suspicious", pa.bool_()),
        ("cluster", pa.int64()),
        ("is_weak_cluster", pa.bool_()),
    ]
)
"""One row of the dataset's index with what was found about it.

`mean_distance` is that of its neighbours. `predicted` and the probabilities are those of a linear
head that was solved without the picture; `label_rank` counts from 1, the most suspicious label
first. All are null for a picture whose label was not judged."""


def pairs_table(outcome: SimilarOutcome) -> pa.Table:
    """Return the near-duplicates, PAIRS: those in different splits first, then the most alike."""
    found, contents = outcome.duplicates, outcome.contents
    is_leak = np.zeros(len(found.pairs), dtype=np.bool_)
    is_leak[outcome.leaks] = True
    order = np.lexsort((-found.correlations, ~is_leak))

    first, second = (contents.rows[rows] for rows in found.pairs[order].T)
    index = outcome.dataset.index
    columns: dict[str, Any] = {}
    for prefix, rows in (("", first), ("other_", second)):
        columns[f"{prefix}uri"] = index.column("uri").take(pa.array(rows))
    for prefix, pairs in (("", found.pairs[order, 0]), ("other_", found.pairs[order, 1])):
        columns[f"{prefix}split"] = _names(contents.splits[pairs], list(SPLITS))
        columns[f"{prefix}label"] = _names(contents.labels[pairs], outcome.dataset.classes)
    columns["hash_bits"] = pa.array(found.hash_bits[order], pa.int32())
    columns["distance"] = pa.array(found.distances[order], pa.float32(), from_pandas=True)
    columns["correlation"] = pa.array(found.correlations[order], pa.float32())
    return pa.table({name: columns[name] for name in PAIRS.names}, schema=PAIRS)


def pictures_table(outcome: SimilarOutcome) -> pa.Table:
    """Return what was found about each row of the index, PICTURES."""
    contents, index, neighbours = outcome.contents, outcome.dataset.index, outcome.neighbours
    of_row = contents.of_row
    nearest = contents.rows[neighbours.indices[:, 0]]
    is_weak = np.isin(outcome.clusters, [outcome.clusters[c.rows[0]] for c in outcome.weak])
    columns = {
        **{name: index.column(name) for name in ("uri", "sample_id", "label", "split")},
        "duplicate_group": pa.array(_duplicate_groups(outcome), pa.string()),
        "nearest_uri": index.column("uri").take(pa.array(nearest[of_row])),
        "nearest_distance": pa.array(neighbours.distances[of_row, 0]),
        "mean_distance": pa.array(neighbours.distances.mean(axis=1)[of_row]),
        "is_outlier": pa.array(outcome.is_outlier[of_row]),
        **_label_columns(outcome.judged, len(contents), of_row),
        "cluster": pa.array(outcome.clusters[of_row], pa.int64()),
        "is_weak_cluster": pa.array(is_weak[of_row]),
    }
    return pa.table({name: columns[name] for name in PICTURES.names}, schema=PICTURES)


def _duplicate_groups(outcome: SimilarOutcome) -> list[str | None]:
    """Return for each index row the group that `groups.csv` gives it, if it has a duplicate."""
    group, of_row = outcome.duplicates.group, outcome.contents.of_row
    sizes = np.bincount(group, minlength=len(group))
    has_copy = sizes[group][of_row] > 1
    return [
        name if copied else None
        for name, copied in zip(merged_groups(outcome), has_copy.tolist(), strict=True)
    ]


def _label_columns(
    judged: Judged | None, contents: int, of_row: NDArray[np.int64]
) -> dict[str, pa.Array]:
    names = ("predicted", "label_probability", "predicted_probability", "label_rank")
    if judged is None:
        empty = {name: pa.nulls(len(of_row), PICTURES.field(name).type) for name in names}
        return {**empty, "is_suspicious": pa.nulls(len(of_row), pa.bool_())}

    scores, place = judged.scores, np.full(contents, -1)
    place[judged.contents] = np.arange(len(judged.contents))
    rank = np.empty(len(judged.contents), dtype=np.int64)
    rank[scores.ranking] = np.arange(1, len(rank) + 1)
    best = scores.probabilities.max(axis=1)
    of_label = scores.probabilities[np.arange(len(rank)), scores.other] - scores.margin

    places = place[of_row]
    index = pa.array(places, pa.int64(), mask=places < 0)
    columns = {
        "predicted": pa.array([judged.classes[number] for number in scores.predicted]),
        "label_probability": pa.array(of_label.astype(np.float32)),
        "predicted_probability": pa.array(best.astype(np.float32)),
        "label_rank": pa.array(rank),
        "is_suspicious": pa.array(scores.is_flagged),
    }
    return {name: column.take(index) for name, column in columns.items()}


def suspicious_table(pictures: pa.Table) -> pa.Table:
    """Return the pictures whose label is probably wrong, the most suspicious first; each once."""
    found = pictures.filter(pc.fill_null(pictures.column("is_suspicious"), False))
    return found.sort_by([("label_rank", "ascending"), ("uri", "ascending")])


def corrections_csv(suspicious: pa.Table) -> bytes:
    """Return the form for corrections, as that of a review queue: the labels are to be filled in.

    The predicted class stands beside it; a prediction is no label until somebody confirms it.
    """
    form = pa.table(
        {
            "uri": suspicious.column("uri"),
            "label": suspicious.column("predicted"),
            "score": suspicious.column("predicted_probability"),
        }
    )
    return corrections_form(form)


def groups_csv(outcome: SimilarOutcome) -> bytes:
    """Return a CSV with `uri` and `group` for `ingest --group`: rows of groups only."""
    groups = pa.array(merged_groups(outcome), pa.string())
    table = pa.table({"uri": outcome.dataset.index.column("uri"), "group": groups})
    table = table.filter(groups.is_valid())
    form = {name: escape_formulas(table.column(name)) for name in table.column_names}
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.table(form), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _names(numbers: NDArray[np.int64], names: list[str]) -> pa.Array:
    """Return the name of each number, null for -1."""
    return pa.array(names, pa.string()).take(pa.array(numbers, pa.int64(), mask=numbers < 0))
