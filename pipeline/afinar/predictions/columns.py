"""Rows of predictions as Arrow columns, optional ones too, and the name of a partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.config.label import LabelConfig
from afinar.predictions.schema import ABSTAINED, PREDICTIONS

UNNAMED_TOP_K: Final = 5
"""The `top_k` that partition names leave out. It must never change, whatever the configuration's
default is: a published `3-0a1b2c3d` without `top…` always has five classes per row."""


_FEW_CLASSES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionalColumns:
    """Columns that follow those of PREDICTIONS.

    - `abstained`, boolean, if `abstain_below` is above 0: the score is below it, or not a number.
    - `scores`, list<float32>: the probabilities of all classes, in their order.
    - `features`, list<float32>: the activations at the cut.
    """

    abstain_below: float = 0.0
    scores: bool = False
    features: bool = False

    @property
    def schema(self) -> pa.Schema:
        """PREDICTIONS and the optional columns."""
        schema = PREDICTIONS
        if self.abstain_below:
            schema = schema.append(ABSTAINED)
        for name in ("scores", "features"):
            if getattr(self, name):
                schema = schema.append(pa.field(name, pa.list_(pa.float32())))
        return schema

    def arrays(
        self, scores: NDArray[np.float32], features: NDArray[np.float32] | None
    ) -> list[pa.Array]:
        """Return the optional columns of pictures with scores [n, classes], features [n, width]."""
        arrays = []
        if self.abstain_below:
            # Written as `not >=`, so that NaN counts as below.
            best = scores.max(axis=1).astype(np.float64)
            arrays.append(pa.array(~(best >= self.abstain_below)))
        if self.scores:
            arrays.append(_lists(scores))
        if self.features and features is not None:
            arrays.append(_lists(features))
        return arrays


NO_OPTIONAL_COLUMNS: Final = OptionalColumns()


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Predicted pictures: columns of PREDICTIONS, and what the network gave for each.

    `scores` float32 [n, classes], `features` float32 [n, width] if they are to be written.
    """

    uris: Sequence[str]
    sample_ids: Sequence[str]
    etags: Sequence[str]
    scores: NDArray[np.float32]
    features: NDArray[np.float32] | None


def predictions_table(
    batches: Sequence[Predicted],
    classes: Sequence[str],
    top_k: int,
    model_version: str,
    columns: OptionalColumns = NO_OPTIONAL_COLUMNS,
) -> pa.Table:
    """Return the rows of batches of pictures, column by column: no object is made for a row.

    The schema is `columns.schema`. `classes` are the names in the order of the scores.
    """
    if not batches:
        return columns.schema.empty_table()
    scores = np.concatenate([batch.scores for batch in batches])
    features = [batch.features for batch in batches if batch.features is not None]
    best = best_classes(scores, top_k)
    best_scores = np.take_along_axis(scores, best, axis=1)
    names = pa.array(classes, pa.string())
    texts = (
        pa.array(list(chain.from_iterable(column)), pa.string())
        for column in (
            (batch.uris for batch in batches),
            (batch.sample_ids for batch in batches),
            (batch.etags for batch in batches),
        )
    )

    arrays = [
        *texts,
        names.take(pa.array(best[:, 0])),
        pa.array(best_scores[:, 0]),
        pa.ListArray.from_arrays(_offsets(best), names.take(pa.array(best.reshape(-1)))),
        _lists(best_scores),
        pa.repeat(pa.scalar(model_version, pa.string()), len(scores)),
        *columns.arrays(scores, np.concatenate(features) if features else None),
    ]
    return pa.Table.from_arrays(arrays, schema=columns.schema)


def best_classes(scores: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
    """Return the numbers of the `top_k` classes with the highest scores of each picture.

    Takes float32 [n, classes] and returns int64 [n, k], the best class first. Equal scores stay in
    the order of the classes, and NaN comes last.
    """
    count, classes = scores.shape
    if classes <= max(_FEW_CLASSES, top_k):
        return np.argsort(-scores, axis=1, kind="stable")[:, :top_k]

    # To sort a thousand scores takes 60 us a picture. So find the k-th highest one and sort only
    # those that are no lower: k of them, unless the k-th score is not the only one of its value.
    limits = -np.partition(-scores, top_k - 1, axis=1)[:, top_k - 1]
    rows, columns = np.nonzero(scores >= limits[:, None])
    if not np.array_equal(np.bincount(rows, minlength=count), np.full(count, top_k)):
        return np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    chosen = columns.reshape(count, top_k)
    order = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    best: NDArray[np.int64] = np.take_along_axis(chosen, order, axis=1)
    return best


def _lists(matrix: NDArray[Any]) -> pa.ListArray:
    """Return [n, k] as n lists of k values."""
    return pa.ListArray.from_arrays(_offsets(matrix), pa.array(matrix.reshape(-1)))


def _offsets(matrix: NDArray[Any]) -> pa.Array:
    rows, width = matrix.shape
    return pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(width))


def optional_columns(config: LabelConfig) -> OptionalColumns:
    """Return the optional columns that a configuration asks for."""
    return OptionalColumns(
        abstain_below=float(config.abstain_below), scores=config.scores, features=config.features
    )


def partition_name(version: str, config: LabelConfig) -> str:
    """Return the name of a partition: the model's version and all options that change a row.

    `3-0a1b2c3d-top3-scores` holds the three best classes and all scores of version `3-0a1b2c3d`.
    """
    parts = [version]
    if config.top_k != UNNAMED_TOP_K:
        parts.append(f"top{config.top_k}")
    if config.precision != "auto":
        parts.append(config.precision)
    if config.scores:
        parts.append("scores")
    if config.features:
        parts.append("features")
    if config.abstain_below:
        parts.append(f"abstain{float(config.abstain_below)!r}")

    return "-".join(parts)
