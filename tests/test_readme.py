"""The Python snippets of the README run, unchanged, on the output of its commands."""

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

README = Path(__file__).resolve().parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


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
    checks: dict[str, Callable[[], bool]] = {
        "to_numpy_ndarray": lambda: (
            names["pixels"].shape == (80, 64, 64, 3) and len(names["index"]) == 80
        ),
        "USING (sample_id)": lambda: "moss" in capsys.readouterr().out,
        "from_arrow": lambda: "(4, 64, 64, 3)" in capsys.readouterr().out,
        "read_parquet": lambda: (
            len(names["frame"]) == 80 and bool(names["frame"]["score"].between(0, 1).all())
        ),
        "open_model": lambda: (
            len(names["predictions"]) == 80 and names["images"].shape == (3, 64, 64, 3)
        ),
    }
    (check,) = [check for text, check in checks.items() if text in SNIPPETS[number]]
    assert check()


def test_number_of_snippets_is_known() -> None:
    assert len(SNIPPETS) == 5
