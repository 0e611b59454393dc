"""Targets of operating points, as `--operating-points` describes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from afinar.errors import RequestError

Measure = Literal["precision", "recall"]


@dataclass(frozen=True)
class OperatingTarget:
    """A measure of a binary classifier and the least value that it must have."""

    measure: Measure
    value: float


def parse_operating_points(spec: str) -> list[OperatingTarget]:
    """Parse the value of `--operating-points`. Raises RequestError that names the wrong part.

    Example: "precision:0.95" gives [OperatingTarget("precision", 0.95)].
    """
    return [] if spec == "none" else [_parse_target(part.strip()) for part in spec.split(",")]


def _parse_target(part: str) -> OperatingTarget:
    measure, _, text = part.partition(":")
    try:
        value = float(text)
    except ValueError:
        value = math.nan

    # NaN fails the comparison too.
    if measure not in {"precision", "recall"} or not 0 < value <= 1:
        raise RequestError(
            f"--operating-points {part!r}: give precision:SHARE or recall:SHARE, such as "
            "precision:0.95, or `none`"
        )
    return OperatingTarget(cast("Measure", measure), value)
