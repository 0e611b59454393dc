"""Optional prediction columns, and the partition name derived from the options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.config.label import LabelConfig
from afinar.predictions.schema import ABSTAINED, PREDICTIONS

UNNAMED_TOP_K: Final = 5
"""The `top_k` that partition names leave out. It must never change, whatever the configuration's
default is: a published `3-0a1b2c3d` without `top…` always has five classes per row."""


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

    def rows(
        self, scores: NDArray[np.float32], features: NDArray[np.float32] | None
    ) -> list[dict[str, Any]]:
        """Return each picture's optional columns, from [n, classes] scores, [n, width] features."""
        rows: list[dict[str, Any]] = [{} for _ in scores]
        for row, probabilities in zip(rows, scores, strict=True):
            if self.abstain_below:
                # Written as `not >=`, so that NaN counts as below.
                row["abstained"] = not float(probabilities.max()) >= self.abstain_below
            if self.scores:
                row["scores"] = probabilities
        if self.features and features is not None:
            for row, activations in zip(rows, features, strict=True):
                row["features"] = activations
        return rows


NO_OPTIONAL_COLUMNS: Final = OptionalColumns()


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
