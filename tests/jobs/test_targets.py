"""Requests with a wrong target, a pipe, or from a folder that was deleted end with one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from afinar.cli.main import main
from tests.archives import label
from tests.conftest import Trained


@pytest.fixture(scope="module")
def places(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return one folder of each kind, by the word that stands for it in a command."""
    predictions = tmp_path_factory.mktemp("targets") / "predictions"
    label(trained.pictures, predictions, trained)
    return {
        "PICTURES": str(trained.pictures),
        "DATASET": trained.dataset,
        "PREDICTIONS": str(predictions),
        "MODELS": trained.models,
        "MODEL": trained.champion,
    }


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ingest PICTURES PREDICTIONS", "holds predictions, not a dataset"),
        ("ingest PICTURES MODELS", "holds models, not a dataset"),
        ("ingest DATASET PICTURES", "holds a dataset, no pictures: are two arguments swapped?"),
        ("ingest MODELS PICTURES", "holds models, no pictures: are two arguments swapped?"),
        ("train MODELS DATASET", "holds models, not a dataset: are two arguments swapped?"),
        ("ingest PICTURES PICTURES", "is the source as well as the target"),
        ("ingest DATASET DATASET", "is the source as well as the target"),
        ("plan ingest PICTURES MODELS", "holds models, not a dataset"),
        ("label PICTURES DATASET --model MODEL", "holds a dataset, not predictions"),
        ("label PICTURES MODELS --model MODEL", "holds models, not predictions"),
        ("label DATASET DATASET --model MODEL", "is the source as well as the target"),
        ("plan label PICTURES DATASET --model MODEL", "holds a dataset, not predictions"),
        ("train DATASET PREDICTIONS", "holds predictions, not models"),
        ("train DATASET DATASET", "is the source as well as the target"),
    ],
)
def test_wrong_target_is_refused_with_what_it_holds(
    command: str, message: str, places: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: sorted(Path(path).rglob("*")) for path in places.values() if "@" not in path}
    assert main([places.get(word, word) for word in command.split()]) == 2
    assert message in capfd.readouterr().err
    assert before == {path: sorted(Path(path).rglob("*")) for path in before}


def test_deleted_current_folder_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["status", "dataset"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "the current folder does not exist any more" in line


def test_pipe_in_place_of_a_recipe_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "recipe.toml")
    assert main(["ingest", "a", "b", "--recipe", str(tmp_path / "recipe.toml")]) == 2
    assert "it is not a regular file" in capfd.readouterr().err
