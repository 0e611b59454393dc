"""Run folders of `afinar label`, run in this process without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afinar.cli import label
from afinar.config.label import LabelConfig
from afinar.errors import ShortfallError
from afinar.execution.executor import RayExecutor
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained, make_archive


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RayExecutor, "for_job", lambda config: InlineExecutor())


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


def test_run_over_its_reject_budget_leaves_a_run_folder_too(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ShortfallError, match="1 of 13"):
        label.run(LabelConfig(**config, max_reject_rate=0.01))
    (run,) = runs(config["predictions"])
    assert f"report: {run / 'report.html'}" in capsys.readouterr().err
    assert "Rejects" in (run / "report.html").read_text(encoding="utf-8")
