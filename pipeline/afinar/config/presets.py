"""Presets of a training: values for the flags that a user has not given."""

from __future__ import annotations

from typing import Any, Final

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "none": {},
    "quick": {"regime": "frozen"},
    "best": {
        "augment": "flip,crop:0.6,brightness:0.2,contrast:0.2",
        "epochs": 30,
        "ema": 0.99,
        "repeats": 3,
    },
}
"""Fields of `TrainConfig` by preset. A recipe and flags come before them."""


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """Return fields that a user has given, and those of their preset that are not among them."""
    return PRESETS.get(values.get("preset", "none"), {}) | values
