"""The README: its snippets run unchanged, its links lead somewhere, its picture is small.

The snippets of the three jobs are run by test_wheel.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afinar.config.label import LabelConfig
from afinar.labelling.driver import run_labelling
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = [
    block
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    if "afinar.ingest(" not in block
]


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a dataset, models and predictions."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "dataset").symlink_to(trained.dataset)
    (folder / "models").symlink_to(trained.models)
    config = LabelConfig(
        source=str(trained.pictures),
        predictions=str(folder / "predictions"),
        model=trained.champion,
    )
    run_labelling(config, InlineExecutor())
    return folder


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs_and_gives_its_result(
    number: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    local_ray: None,
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), names)
    output = capsys.readouterr().out
    checks: dict[str, Callable[[], bool]] = {
        "DataLoader": lambda: (
            next(iter(names["loader"]))[0].shape == (32, 3, 64, 64)
            and names["logits"].shape == (3, 2)
            and "None 0.0 missing: " in output
            and len(names["predictions"]) == 80
        ),
        "to_numpy_ndarray": lambda: (
            names["pixels"].shape == (80, 64, 64, 3) and len(names["index"]) == 80
        ),
        "duckdb.sql": lambda: "moss" in output and "40" in output,
        ".ray(": lambda: "(4, 64, 64, 3)" in output,
    }
    (check,) = [check for text, check in checks.items() if text in SNIPPETS[number]]
    assert check()


def test_every_snippet_is_run_by_a_test() -> None:
    assert len(SNIPPETS) == 4
    assert TEXT.count("```python") == 5
    assert TEXT.count("```sh") == 1
    assert TEXT.count("```") == 2 * 6


def test_links_lead_to_files_and_headings() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link


def test_readme_is_short_and_its_picture_small() -> None:
    assert len(TEXT.splitlines()) <= 375  # 30 of them for nights, comparisons and explanations
    assert (ROOT / "infra" / "images" / "report.png").stat().st_size <= 200_000
