"""Page of a labelling run: counts, drift from the previous run, and names that stay text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from afinar.labelling.contact_sheet import SCHEMA, ContactSheet
from afinar.labelling.run_report import RunReport, RunStats
from afinar.labelling.stats import BINS, Baseline, LabelStats
from afinar.report.labelling import LabelRun, contact_sheets, label_page
from afinar.report.pieces import PICTURES
from afinar.storage.open import open_store
from tests.conftest import jpeg
from tests.report.html import LONG, NASTY, Reader, assert_sound, section


def histogram(**bins: int) -> tuple[int, ...]:
    """Counts by bin: `histogram(b19=3)`."""
    return tuple(bins.get(f"b{place}", 0) for place in range(BINS))


NOW = LabelStats({NASTY: 300, "rust": 600}, histogram(b19=600, b10=300), 735.0)
THEN = LabelStats({"rust": 400, "slate": 400}, histogram(b19=800), 780.0)
EXAMPLE = {"uri": f"/archive/{NASTY}.jpg", "reason": "corrupt", "detail": NASTY}


def run_of(before: Baseline | None, stats: LabelStats = NOW, **more: Any) -> LabelRun:
    """Return a run with 3 rejects of 1,003 pictures, 2 of them of this run."""
    summary = {
        "left_out": {},
        "predictions": f"/out/{NASTY}",
        "model": "/models@3-abc",
        "listed": 1003,
        "labelled": stats.pictures,
        "rejected": 3,
        "skipped": 1000 - stats.pictures,
        "rejects_by_reason": {"corrupt": 2, "empty": 1},
        "images_per_second": 120.0,
        "seconds": 95.0,
        "stages": {"decode": 30.0, "forward": 60.0},
        "notes": [NASTY],
        **more,
    }
    run_stats = RunStats(stats, Counter({"corrupt": 2}), {"corrupt": [EXAMPLE]})
    return LabelRun(
        run="20260101T000000Z-abc",
        source=f"/{NASTY}",
        partition="3-abc",
        summary=summary,
        report=RunReport(run_stats, before),
    )


@pytest.fixture(scope="module")
def page() -> str:
    return label_page(run_of(Baseline(THEN, f"the previous run {NASTY}")))


def text_of(page: str) -> str:
    return " ".join(Reader(page).text.split())


def test_names_that_look_like_markup_stay_text(page: str) -> None:
    reader = assert_sound(page)
    assert reader.tags.count("b") == len(re.findall(r"<b>", page))
    for name in (f"Labels of /{NASTY}", f"/out/{NASTY}/parts/model=3-abc"):
        assert name in reader.text
    assert f"/archive/{NASTY}.jpg" in reader.titles


def test_page_has_counts_and_drift(page: str) -> None:
    text = text_of(page)
    for phrase in (
        "1,003 listed = 900 labelled + 3 rejected + 100 skipped. Skipped are those that this model",
        "81.7%mean confidence",
        "limited by forward (67%)",
        "Drift. Class shares differ from the previous run",
        "Drift. Confidence differs from the previous run",
        "2 min in total",
        f"{NASTY} 0.0% → 33.3%",
    ):
        assert phrase in text, phrase


def test_class_row_has_its_share_before(page: str) -> None:
    rows = Reader(page).table_below("class", "", "pictures", "share", "share before")
    shown = {row[0]: row[2:] for row in rows}
    assert next(iter(shown)) == "rust", "the most frequent first"
    assert (shown["rust"], shown["slate"]) == (
        ["600", "66.7 %", "50.0 %"],
        ["0", "0.0 %", "50.0 %"],
    )
    bars = section(page, "classes").split("<tr>")[2]
    assert 'style="width:100.00%"' in bars
    assert 'style="left:75.00%"' in bars, "half, beside two thirds"


def test_histogram_has_bars_of_the_run_and_a_line_of_the_baseline(page: str) -> None:
    drawing = section(page, "confidence")
    heights = [float(height) for height in re.findall(r'<rect[^>]*height="([0-9.]+)"', drawing)]
    assert len(heights) == BINS
    assert heights[10] == pytest.approx(heights[19] / 2, abs=0.02)
    assert sum(height > 0 for height in heights) == 2
    (line,) = re.findall(r'<path class="curve[^>]* d="M([^"]+)"', drawing)
    points = line.split("L")
    assert len(points) == 2 * BINS
    assert points[-1].split()[1] == "10.0", "all of the run before was in the last bin"
    assert "0.50 to 0.55: 300 pictures, 33.3%" in drawing
    assert f"before: the previous run {NASTY}" in Reader(drawing).text


def test_rejects_of_this_run_have_examples_and_those_of_earlier_runs_are_counted(page: str) -> None:
    rows = Reader(page).table_below("reason", "pictures")
    assert rows[0] == ["corrupt", "2", f"{NASTY.rsplit('/', 1)[1]}.jpg{NASTY}"]
    assert rows[1] == ["empty", "1", "by earlier runs"]


def test_page_of_a_first_run_has_no_comparison() -> None:
    page = label_page(run_of(None))
    text = text_of(page)
    assert "this is the first run of this source" in text
    assert "drift" not in text.lower()
    assert "before:" not in page
    assert "share before" not in text


def test_page_of_a_run_that_labelled_nothing_renders() -> None:
    run = run_of(Baseline(THEN, "the previous run"), LabelStats(), stages={})
    text = text_of(label_page(run))
    assert "No picture was labelled" not in text, (
        "the classes that were there before are shown as gone"
    )
    assert "Nothing was labelled, so there is nothing to compare" in text
    assert "Confidence by" not in text
    assert 'id="confidence"' not in label_page(run)
    first = replace(run, report=RunReport())
    assert "No picture was labelled" in text_of(label_page(first))


def test_page_of_a_resumed_run_counts_the_interrupted_one_too() -> None:
    assert "900 pictures were labelled" in text_of(
        label_page(run_of(None, labelled=10, skipped=990))
    )
    assert "interrupted" not in text_of(label_page(run_of(None)))


def test_snippets_escape_quotes_of_the_folder() -> None:
    run = run_of(None, predictions="/it's here")
    page = Reader(label_page(run)).text
    assert page.count("""open_predictions("/it's here", '3-abc')""") == 3


def test_contact_sheets_show_the_most_and_the_least_certain_of_each_class(tmp_path: Path) -> None:
    (tmp_path / f"{LONG}.jpg").write_bytes(jpeg(1))
    rows = [
        {"uri": str(tmp_path / "gone.jpg"), "etag": "e", "label": "rust", "score": number / 100}
        for number in range(99, 49, -1)
    ]
    (info,) = open_store(str(tmp_path)).walk()
    rows.append({"uri": info.uri, "etag": info.etag, "label": NASTY, "score": 0.625})
    sheet = ContactSheet()
    sheet.add(pa.Table.from_pylist(rows, schema=SCHEMA))

    sheets = contact_sheets(sheet.table(), LabelStats({"rust": 50, NASTY: 1}))
    assert [(entry.name, entry.count) for entry in sheets] == [("rust", 50), (NASTY, 1)]
    rust, nasty = sheets
    assert [tile.caption for tile in rust.most][:2] == ["99.0%", "98.0%"]
    assert [tile.caption for tile in rust.least][:2] == ["50.0%", "51.0%"]
    assert not rust.most[0].image, "it is gone"
    assert len(nasty.most) == 1
    assert not nasty.least
    assert nasty.most[0].image

    page = label_page(replace(run_of(None), sheets=sheets))
    reader = assert_sound(page)
    assert reader.text.count("cannot be read any more") == 12
    assert f"{tmp_path}/{LONG}.jpg" in reader.titles
    assert LONG not in reader.text, "shortened"
    (image,) = reader.images
    assert (image["alt"] or "").startswith(f"{NASTY}, 62.5%")
    assert "13 of 900 labelled pictures" in reader.words


def test_pictures_of_many_classes_are_bounded() -> None:
    names = [f"class {number}" for number in range(300)]
    rows = [
        {"uri": f"/gone/{name}-{number}.jpg", "etag": "e", "label": name, "score": 0.5}
        for name in names
        for number in range(4)
    ]
    sheets = contact_sheets(
        pa.Table.from_pylist(rows, schema=SCHEMA), LabelStats(dict.fromkeys(names, 4))
    )
    assert len(sheets) == 100
    assert sum(len(entry.most) + len(entry.least) for entry in sheets) == PICTURES
