"""The most and the least certain predictions, found part by part."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar.labelling import contact_sheet
from afinar.labelling.contact_sheet import PER_CLASS, SCHEMA, ContactSheet

ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=120)


def table(rows: list[tuple[str, int]], first: int = 0) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"uri": f"/{number:05d}.jpg", "etag": "e", "label": label, "score": score / 128}
            for number, (label, score) in enumerate(rows, first)
        ],
        schema=SCHEMA,
    )


@given(rows=ROWS, cut=st.integers(0, 120))
def test_parts_give_the_same_sheet_as_the_whole(rows: list[tuple[str, int]], cut: int) -> None:
    whole, parts, other = ContactSheet(), ContactSheet(), ContactSheet()
    whole.add(table(rows))
    parts.add(table(rows[:cut]))
    other.add(table(rows[cut:], first=len(rows[:cut])))
    assert parts.plus(other).table() == whole.table()

    for label in "abc":
        scores = sorted((score for name, score in rows if name == label), reverse=True)
        half = PER_CLASS // 2
        kept = [row["score"] * 128 for row in whole.table().to_pylist() if row["label"] == label]
        assert kept == (scores if len(scores) <= PER_CLASS else scores[:half] + scores[-half:])


def test_rows_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "_PENDING_ROWS", 50)
    sheet = ContactSheet()
    for part in range(20):
        sheet.add(table([("a", 1), ("b", 2)] * 10, first=20 * part))
        assert sum(map(len, sheet._tables)) <= 50 + 20 + 2 * PER_CLASS
    assert len(sheet.table()) == 2 * PER_CLASS


def test_score_that_is_no_number_is_the_least_certain() -> None:
    rows = table([("a", 64)] * 20)
    scores = pa.array([float("nan"), *[0.5] * 19], pa.float32())
    sheet = ContactSheet()
    sheet.add(rows.set_column(3, "score", scores))
    assert sheet.table().column("uri").to_pylist()[-1] == "/00000.jpg"
