"""Recipes: TOML files whose keys are flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.config.ingest import IngestConfig
from afinar.config.recipes import load_recipe
from afinar.config.train import TrainConfig
from afinar.errors import RequestError

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "recipes"


def test_shipped_recipes_are_valid() -> None:
    recipes = sorted(RECIPES.glob("*.toml"))
    assert recipes
    for path in recipes:
        config_class = IngestConfig if path.name.startswith("ingest") else TrainConfig
        assert load_recipe(config_class, path.stem) == load_recipe(config_class, str(path))


def test_unknown_recipe_is_refused_with_similar_names() -> None:
    with pytest.raises(RequestError, match=r"no recipe 'vgg16-fc3'.*vgg16-fc2"):
        load_recipe(TrainConfig, "vgg16-fc3")


def test_recipe_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("size: 64")
    with pytest.raises(RequestError, match="not TOML"):
        load_recipe(IngestConfig, str(tmp_path / "r.toml"))
