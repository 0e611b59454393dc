"""`afinar models` as a command, on a history of five versions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afinar.cli.main import main
from afinar.errors import ShortfallError
from afinar.models.registry import aliases
from afinar.models.registry.versions import ModelVersion, find_model, get_model, publish_model
from afinar.storage.open import open_store
from afinar.storage.versions import latest
from tests.conftest import Trained


@pytest.fixture
def models(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the session's model, published four more times."""
    folder = Path(shutil.copytree(trained.models, tmp_path / "models"))
    store = open_store(str(folder))
    first = get_model(store, 1)
    for _ in range(4):
        publish_model(store, lambda number: _numbered(first, number))
    return folder


def _numbered(version: ModelVersion, number: int) -> ModelVersion:
    lineage = {name: value for name, value in version.lineage.items() if name != "run"}
    return replace(version, version=number, lineage=lineage)


def run_json(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    code = main(["models", *argv, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_list_shows_every_version_and_marks_the_champion(
    models: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, summary = run_json(capfd, str(models))
    assert code == 0
    assert summary["champion"] == 1
    assert [row["version"] for row in summary["versions"]] == [1, 2, 3, 4, 5]
    assert main(["models", str(models), "list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.startswith("*") for line in lines[1:6]] == [True, False, False, False, False]
    assert lines[-1] == "* champion, version 1: the first version"
    assert all(len(line) <= 100 for line in lines)


def test_promoted_version_is_the_champion_at_once_and_rollback_returns(
    models: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, summary = run_json(capfd, str(models), "promote", "3", "--why", "sees the new camera")
    assert (summary["champion"], summary["why"]) == (3, "sees the new camera")
    assert find_model(str(models)).version.version == 3, "MODELS alone is the champion"
    assert find_model(f"{models}@champion").version.version == 3

    for expected in (1, 3):
        _, summary = run_json(capfd, str(models), "rollback")
        assert summary["champion"] == expected
    code, shown = run_json(capfd, str(models), "show")
    assert (code, shown["version"], shown["champion"]) == (0, 3, True)
    assert [moved["why"] for moved in shown["promotions"]] == [
        "sees the new camera",
        "rolled back by hand",
    ]
    assert all(moved["created"] and "@" in moved["actor"] for moved in shown["promotions"])


def test_show_names_metrics_and_origin(
    models: Path, trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", str(models), "show", "1"]) == 0
    text = capfd.readouterr().out
    for words in ("(champion)", "small_cnn cut at", "moss, rust", "95 % interval", trained.dataset):
        assert words in text


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the same record before either writes."""
    store = open_store(str(models))
    seen = latest(store, "aliases/champion")
    monkeypatch.setattr(aliases, "latest", lambda *_: seen)
    aliases.promote(store, 2, "first")
    with pytest.raises(ShortfallError, match="made version 2 of .* at the same time"):
        aliases.promote(store, 3, "second")
    monkeypatch.undo()
    assert aliases.champion_number(store) == 2


def test_record_of_a_champion_from_before_has_no_time(models: Path) -> None:
    path = models / "aliases/champion/00000001.json"
    path.write_text(json.dumps({"version": 1, "why": "the first version", "owner": "o"}))
    (first,) = aliases.promotions(open_store(str(models)))
    assert (first.version, first.created, first.actor) == (1, "", "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["promote"], "name the version"),
        (["promote", "9"], "it has versions 1, 2, 3, 4, 5"),
        (["rollback"], "no other champion"),
        (["rollback", "3"], "takes no version"),
        (["list", "--why", "w"], "moves nothing"),
    ],
)
def test_wrong_request_says_what_to_change(
    models: Path, argv: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", str(models), *argv]) == 2
    assert words in capfd.readouterr().err


def test_folder_without_models_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", str(tmp_path)]) == 2
    assert "holds no model" in capfd.readouterr().err
