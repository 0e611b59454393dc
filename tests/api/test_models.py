"""The versions of a model in Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import afinar
from afinar.models.registry.versions import find_model, publish_model
from tests.conftest import Trained


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """A history of two versions."""
    shutil.copytree(trained.models, tmp_path / "models")
    stored = find_model(f"{tmp_path}/models@1")
    publish_model(
        stored.store,
        lambda number: stored.version.__class__(**{**vars(stored.version), "version": number}),
    )
    return tmp_path / "models"


def test_versions_are_listed_promoted_and_rolled_back(folder: Path) -> None:
    models = afinar.open_models(folder)
    assert len(models) == 2
    assert [version.version for version in models] == [1, 2]
    assert models.champion == models[1]
    models.promote(2, why="a test")
    assert models.champion == models[2] == models[models[2].id]
    assert afinar.open_model(folder).version.version == 2
    assert models.open(1).version.version == 1
    models.rollback()
    assert models.champion.version == 1
    assert "* champion, version 1" in repr(models)
    assert models._repr_html_().startswith("<pre>")


def test_wrong_folder_and_wrong_version_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(afinar.RequestError, match="holds no model"):
        afinar.open_models(tmp_path / "empty")
    with pytest.raises(afinar.RequestError, match="no version '3'"):
        afinar.open_models(folder).promote(3)
