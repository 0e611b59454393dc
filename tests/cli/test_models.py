"""`afinar models` as a command, on a history of five versions."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afinar.cli.main import main
from afinar.errors import ShortfallError
from afinar.models.registry import aliases
from afinar.models.registry.history import VersionDecision, record_decision
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


def test_show_says_what_was_live_at_a_time(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, (version, created) in enumerate(
        [(1, "2026-11-01T08:00:00+00:00"), (3, "2026-11-03T08:00:00+00:00")], 1
    ):
        record = {"version": version, "why": f"move {number}", "created": created, "actor": "a@b"}
        path = models / f"aliases/champion/{number:08}.json"
        path.write_text(json.dumps({**record, "owner": "o"}))

    for at, expected in (
        ("2026-11-01", 1), ("2026-11-02T12:00", 1), ("2026-11-03", 3), ("2026-11-03T07:59+00:00", 1)
    ):  # fmt: skip
        code, shown = run_json(capfd, str(models), "show", "champion", "--at", at)
        assert (code, shown["version"]) == (0, expected), at
    assert (shown["since"], shown["why"]) == ("2026-11-01T08:00:00+00:00", "move 1")
    assert main(["models", str(models), "show", "champion", "--at", "2026-10-01"]) == 2
    assert "had no champion at 2026-10-01" in capfd.readouterr().err


def test_any_name_can_stand_for_a_version(
    models: Path, trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    run_json(capfd, str(models), "promote", "4", "--alias", "staging", "--why", "for the tests")
    code, summary = run_json(capfd, str(models), "promote", "5", "--alias", "staging")
    assert (code, summary["champion"], summary["aliases"]) == (0, 1, {"champion": 1, "staging": 5})
    assert find_model(f"{models}@staging").version.version == 5
    _, summary = run_json(capfd, str(models), "rollback", "--alias", "staging")
    assert (summary["to"], summary["aliases"]["staging"]) == (4, 4)
    _, shown = run_json(capfd, str(models), "show", "staging")
    assert [moved["alias"] for moved in shown["promotions"]] == ["staging", "staging"]
    assert main(["models", str(models), "show", "nobody"]) == 2
    assert "write @champion, @previous, @latest, @staging" in capfd.readouterr().err

    run_json(capfd, str(models), "promote", "2")
    assert find_model(f"{models}@previous").version.version == 1


def test_a_rollback_is_used_by_the_next_label_at_once_and_says_its_seconds(
    models: Path, trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = str(next(Path(trained.pictures).rglob("*.jpg")))
    run_json(capfd, str(models), "promote", "3")
    assert main(["models", str(models), "rollback"]) == 0
    assert "@champion is version 1: 0." in capfd.readouterr().out
    assert main(["label", picture, "--model", str(models), "--json"]) == 0
    labelled = json.loads(capfd.readouterr().out)
    assert find_model(f"{models}@1").version.id in json.dumps(labelled)


def test_a_retired_version_is_out_of_use_and_stays_readable(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_json(capfd, str(models), "promote", "4")
    run_json(capfd, str(models), "promote", "2")
    for number in ("4", "5"):
        code, summary = run_json(capfd, str(models), "retire", number, "--why", "a leak")
        assert code == 0
    assert [row["version"] for row in summary["versions"] if row["retired"]] == [4, 5]
    assert find_model(f"{models}@latest").version.version == 3

    (tmp_path / "archive").mkdir()
    label = ["label", str(tmp_path / "archive"), str(tmp_path / "out"), "--model", f"{models}@4"]
    for request, words in (
        (["models", str(models), "promote", "4"], r"version 4 of .* was retired by .*a leak"),
        (["models", str(models), "retire", "4"], "is retired already"),
        (["models", str(models), "retire", "2"], "is the champion: roll back"),
        (label, "was retired by"),
    ):
        assert main(request) == 2
        assert re.search(words, capfd.readouterr().err), request
    _, summary = run_json(capfd, str(models), "rollback")
    assert summary["champion"] == 1, "the champion before was retired"
    _, shown = run_json(capfd, str(models), "show", "4")
    assert shown["retired"]["why"] == "a leak"


def test_show_prints_lineage_and_decisions(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    decision = VersionDecision(
        night="s3://b/nights/2026-11-01-1", outcome="refused", reasons=["it is worse"], champion=1
    )
    store = open_store(str(models))
    for _ in range(2):  # a night that is continued records it once
        record_decision(store, 1, decision)
    assert main(["models", str(models), "show", "1"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    for words in (
        "refused by s3://b/nights/2026-11-01-1: it is worse", "recipe", "backbone = 'small_cnn'",
        "software", "torch 2.", "dataset", "version 1",
    ):  # fmt: skip
        assert words in text
    assert text.count("it is worse") == 1


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
        (["retire"], "name the version"),
        (["promote", "2", "--alias", "latest"], "neither"),
        (["show", "3", "--at", "2026-11-01"], "show champion --at"),
        (["show", "--at", "soon"], "give a date"),
        (["show", "--alias", "staging"], "moves no alias"),
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
