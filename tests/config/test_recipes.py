"""Recipes: TOML files whose keys are flags."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from afinar.config.base import ClusterJobConfig, JobConfig
from afinar.config.compare import CompareConfig
from afinar.config.ingest import IngestConfig
from afinar.config.nightly import NightlyConfig
from afinar.config.recipes import load_recipe
from afinar.config.train import TrainConfig
from afinar.errors import RequestError

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "recipes"


def test_shipped_recipes_are_valid() -> None:
    recipes = sorted(RECIPES.glob("*.toml"))
    assert recipes
    for path in recipes:
        config_class: type[JobConfig] = TrainConfig
        if path.name.startswith("ingest"):
            config_class = IngestConfig
        elif path.name.startswith("nightly"):
            config_class = NightlyConfig
        elif path.name.startswith("compare"):
            config_class = CompareConfig
        assert load_recipe(config_class, path.stem) == load_recipe(config_class, str(path))


def test_recipe_of_nights_explains_every_key_and_states_the_defaults() -> None:
    """But for places and the size, it sets what the configuration has anyway."""
    values = load_recipe(NightlyConfig, "nightly")
    places = ("source", "dataset", "models", "nights", "archive", "predictions")
    default = NightlyConfig(**{name: values[name] for name in places})
    own = {field.name for field in fields(NightlyConfig)} - {"action"}
    own -= {field.name for field in fields(ClusterJobConfig)} - {"workers"}
    assert values.keys() == own
    assert NightlyConfig(**values) == replace(default, size=224)
    lines = (RECIPES / "nightly.toml").read_text(encoding="utf-8").splitlines()
    explained = [line for line in lines if " = " in line and "#" in line and line[0] != "#"]
    undescribed = [line for line in lines if " = " in line and line not in explained]
    assert set(undescribed) <= {'backbone = "resnet18"', 'weights = "imagenet"'}


def test_unknown_recipe_is_refused_with_similar_names() -> None:
    with pytest.raises(RequestError, match=r"no recipe 'vgg16-fc3'.*vgg16-fc2"):
        load_recipe(TrainConfig, "vgg16-fc3")


def test_recipe_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("size: 64")
    with pytest.raises(RequestError, match="not TOML"):
        load_recipe(IngestConfig, str(tmp_path / "r.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-reject-rate = 0.1\nmax_reject_rate = 0.2", "'max-reject-rate' and 'max_reject_rate'"),
        ('top_k = 1\n"top-k" = 1', "'top_k' and 'top-k'"),
        ("size = " + "[" * 100_000, "nested too deeply"),
        ("size = " + "{a=" * 100_000, "nested too deeply"),
        ("size = " + "9" * 10_000, "not TOML"),
        ('labels = "\\ud800"', "not TOML"),
    ],
)
def test_recipe_that_contradicts_itself_or_cannot_be_parsed_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RequestError, match=message):
        load_recipe(IngestConfig, str(tmp_path / "r.toml"))
