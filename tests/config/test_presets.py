"""Presets: they set the flags that neither the command line nor a recipe gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.api.jobs import _configure
from afinar.cli.arguments import parse
from afinar.config.base import as_dict
from afinar.config.presets import PRESETS
from afinar.config.train import TrainConfig


def train(*flags: str) -> TrainConfig:
    return parse(TrainConfig, ["dataset", "models", *flags], "afinar train", "")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_sets_its_values_and_no_others(name: str) -> None:
    plain, preset = as_dict(train()), as_dict(train("--preset", name))
    changed = {field for field, value in preset.items() if value != plain.get(field)}
    assert changed - {"preset"} == set(PRESETS[name]), "every value differs from the default"
    assert all(preset[field] == value for field, value in PRESETS[name].items())


def test_flag_comes_before_the_preset_even_if_it_is_the_default() -> None:
    assert train("--preset", "quick", "--regime", "auto").regime == "auto"
    best = train("--epochs", "2", "--preset=best")
    assert (best.epochs, best.ema, best.repeats) == (2, 0.99, 3)


def test_recipe_comes_before_the_preset_and_may_name_one(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('preset = "best"\nema = 0.5\n')
    config = train("--recipe", str(recipe))
    assert (config.preset, config.ema, config.repeats) == ("best", 0.5, 3)
    assert train("--recipe", str(recipe), "--preset", "quick").repeats == 1


def test_function_in_python_takes_presets_too() -> None:
    config = _configure("train", TrainConfig, ("dataset", "models"), {"preset": "best", "ema": 0.5})
    assert (config.epochs, config.ema, config.repeats) == (30, 0.5, 3)
