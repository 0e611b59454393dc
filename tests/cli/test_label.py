"""Run folders of `afinar label`, run in this process without Ray."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from afinar.cli import label, plan
from afinar.config.label import LabelConfig
from afinar.config.status import StatusConfig
from afinar.errors import RequestError, ShortfallError
from afinar.labelling.estimate import forecast_label
from afinar.report.status import read_status
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained, make_archive


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "JobExecutor", lambda config: InlineExecutor())


@pytest.fixture
def config(tmp_path: Path, trained: Trained) -> dict[str, Any]:
    source = make_archive(tmp_path / "scans", 6)
    (source / "moss" / "broken.jpg").write_bytes(b"no picture")
    return {"source": str(source), "predictions": str(tmp_path / "out"), "model": trained.champion}


def runs(out: str) -> list[Path]:
    return sorted(Path(out, "runs").iterdir()) if Path(out, "runs").exists() else []


def test_run_that_published_leaves_a_run_folder_and_another_does_not(
    config: dict[str, Any],
) -> None:
    summary = label.run(LabelConfig(**config))
    (run,) = runs(config["predictions"])
    assert summary["report"] == str(run / "report.html")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "13 listed = 12 labelled + 1 rejected + 0 skipped" in page
    assert str(Path(config["source"], "moss", "broken.jpg")) in page
    assert json.loads((run / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["report"] in label.describe(summary)
    assert sum(summary["confidence"]["histogram"]) == 12
    assert 0.5 <= summary["confidence"]["mean"] <= 1.0
    assert summary["drift"]["drifted"] is False

    again = label.run(LabelConfig(**config))
    assert again["report"] is None
    assert runs(config["predictions"]) == [run], "a run that published nothing leaves no folder"
    assert "\nreport" not in label.describe(again)


def test_what_a_listing_left_out_is_in_summary_report_and_status(config: dict[str, Any]) -> None:
    source = Path(config["source"])
    (source / "#recycle").mkdir()
    (source / "notes.txt").write_text("not a picture")
    forecast = asdict(forecast_label(LabelConfig(**config)))
    summary = label.run(LabelConfig(**config))
    assert summary["left_out"] == forecast["left_out"] == {"#recycle": 1, ".txt": 1}
    for text in (label.describe(summary), plan.describe(forecast)):
        assert re.search("^left out +1 #recycle, 1 .txt$", text, re.MULTILINE)
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "Left out of the source: 1 #recycle, 1 .txt." in page

    (shown,) = read_status(StatusConfig(path=config["predictions"]))["partitions"]
    assert shown["left_out"] == summary["left_out"]
    assert label.run(LabelConfig(**config))["left_out"] == summary["left_out"]


def test_predictions_in_their_own_source_are_left_out(config: dict[str, Any]) -> None:
    config |= {"predictions": f"{config['source']}/moss/out", "extensions": "all"}
    for _ in range(2):
        summary = label.run(LabelConfig(**config))
        assert summary["listed"] == 13


def test_one_picture_needs_no_predictions(config: dict[str, Any]) -> None:
    picture = f"{config['source']}/moss/000.jpg"
    argv = [picture, "--model", config["model"]]
    without = label.run(label.configure(argv))
    assert without["picture"] == picture
    assert without == label.run(label.configure([picture, "-", *argv[1:]]))
    source = Path(config["source"])
    (source / "list.txt").write_text(picture)
    os.mkfifo(source / "pipe.jpg")
    for name, words in {
        "": "is a folder, and without PREDICTIONS",
        "list.txt": "is a list of pictures, and without PREDICTIONS",
        "pipe.jpg": "is not a regular file",
    }.items():
        with pytest.raises(RequestError, match=words):
            label.run(label.configure([str(source / name), *argv[1:]]))


def test_run_over_its_reject_budget_leaves_a_run_folder_too(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ShortfallError, match="1 of 13"):
        label.run(LabelConfig(**config, max_reject_rate=0.01))
    (run,) = runs(config["predictions"])
    log = " ".join(capsys.readouterr().err.split())  # long lines are broken
    assert f"report: {run / 'report.html'}" in log
    assert "Rejects" in (run / "report.html").read_text(encoding="utf-8")
