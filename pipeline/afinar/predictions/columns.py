"""What a prediction says on request beside its label, and the name of the partition that says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.config.label import LabelConfig
from afinar.predictions.manifest import PREDICTIONS

_TOP_K: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionalColumns:
    """Columns that a row has on request, after those of PREDICTIONS.

    `abstained` boolean, where `abstain_below` is above 0: the answer's probability is below it, and the label no more
    than a guess. `scores` list<float32>: the probabilities of all classes, in their order. `features` list<float32>:
    the activations at the cut.
    """

    abstain_below: float = 0.0
    scores: bool = False
    features: bool = False

    @property
    def schema(self) -> pa.Schema:
        """PREDICTIONS and the columns asked for."""
        schema = PREDICTIONS
        if self.abstain_below:
            schema = schema.append(pa.field("abstained", pa.bool_()))
        for name in ("scores", "features"):
            if getattr(self, name):
                schema = schema.append(pa.field(name, pa.list_(pa.float32())))
        return schema

    def columns(
        self, scores: NDArray[np.float32], features: NDArray[np.float32] | None
    ) -> list[dict[str, Any]]:
        """The columns asked for of each picture; `scores` is [n, classes], `features` [n, width]."""
        rows: list[dict[str, Any]] = [{} for _ in scores]
        for row, one in zip(rows, scores, strict=True):
            if self.abstain_below:
                row["abstained"] = (
                    not float(one.max()) >= self.abstain_below
                )  # no number at all is no answer either
            if self.scores:
                row["scores"] = one
        if self.features and features is not None:
            for row, activations in zip(rows, features, strict=True):
                row["features"] = activations
        return rows


NO_OPTIONAL_COLUMNS: Final = OptionalColumns()
"""Nothing asked for."""


def optional_columns(config: LabelConfig) -> OptionalColumns:
    """What a request asks for."""
    return OptionalColumns(
        abstain_below=float(config.abstain_below), scores=config.scores, features=config.features
    )


def partition_name(version: str, config: LabelConfig) -> str:
    """The partition that a request writes: the model's version and everything that changes a row."""
    parts = [version]
    if config.top_k != _TOP_K:
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
