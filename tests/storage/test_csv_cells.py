"""Cells of CSV files: no name becomes a formula, and every name comes back."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar.predictions.review_queue import corrections_form
from afinar.sources.tables import read_table
from afinar.storage.csv_cells import escape_formulas, unescape_formulas

FORMULAS = ["=1+1", "+1", "-1", "@SUM(1)", "\tx", "'=x", "''-x", "＝1", '=HYPERLINK("http://e")']
PLAIN = ["moss", "a=b", "'quoted'", "7", "苔", "x -1"]


@pytest.mark.parametrize("label", [*FORMULAS, *PLAIN])
def test_names_of_a_form_are_no_formulas_and_are_read_back(label: str, tmp_path: Path) -> None:
    rows = pa.table({"uri": [f"/scans/{label}.jpg", "s3://b/1.jpg"], "label": [label, "moss"]})
    rows = rows.append_column("score", pa.array([0.25, 0.5]))
    form = corrections_form(rows)
    first = next(csv.DictReader(io.StringIO(form.decode())))
    assert first["label"] == ""
    assert first["predicted"] == (f"'{label}" if label in FORMULAS else label)
    (tmp_path / "corrections.csv").write_bytes(form)
    table = read_table("--labels", str(tmp_path / "corrections.csv"), "predicted")
    assert table.column("predicted").to_pylist() == [label, "moss"]
    assert table.column("uri").to_pylist() == rows.column("uri").to_pylist()


@given(st.lists(st.one_of(st.none(), st.text(alphabet=st.sampled_from("'=+-@\t\r\nax＝é")))))
def test_every_text_comes_back(texts: list[str | None]) -> None:
    cells = pa.chunked_array([pa.array(texts, pa.string())])
    escaped = escape_formulas(cells)
    assert unescape_formulas(escaped).equals(cells)
    assert not any(text and text[0] in "=+-@\t\r\n＝" for text in escaped.to_pylist())
