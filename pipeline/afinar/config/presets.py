"""Values for flags that a user has not given: those of a recipe, and of a preset of trainings."""

from __future__ import annotations

from typing import Any, Final

from afinar.config.base import JobConfig
from afinar.config.recipes import load_recipe

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


def load_defaults(
    config_class: type[JobConfig], recipe: str | None, preset: str | None
) -> dict[str, Any]:
    """Return the fields that a recipe or a preset sets; the preset may be named by the recipe.

    A preset that does not exist sets nothing: the configuration's types refuse its name. Raises
    RequestError for a recipe that cannot be used.
    """
    defaults = load_recipe(config_class, recipe) if recipe else {}
    return PRESETS.get(preset or defaults.get("preset", "none"), {}) | defaults
