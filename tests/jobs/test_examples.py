"""The notebooks of `jobs/examples/` run from top to bottom.

Their code cells are run by `exec` in one namespace. A notebook client and a kernel would add thirty
packages to the environment, and these notebooks have neither magics nor shell lines.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "jobs" / "examples"

pytest.importorskip("conformal_clip_data")


def run_notebook(path: Path) -> list[Any]:
    """Run the code cells; return the values of their last lines, where those are expressions."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        where = f"{path.name}, cell {number}"
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), where, "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), where, "eval"), names))
    return shown


def test_fabric_defects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run_notebook(EXAMPLES / "fabric-defects.ipynb")
    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert len(pages) == 6  # ingest, dataset, train, label, a table of pandas, versions
    assert "240 = 240 added" in pages[0]
    output = capsys.readouterr().out
    assert "of 60 archived images are right" in output
    assert "Prediction(error='missing: " in output
    share = float(output.split("% of 60 archived")[0].split()[-1])
    assert share > 45, "a third would be chance"


def test_notebooks_hold_no_outputs() -> None:
    """Outputs would be those of one machine and one version."""
    for path in EXAMPLES.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") for cell in cells)
