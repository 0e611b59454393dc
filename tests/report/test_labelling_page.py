"""The page of a labelling: its numbers, the run before it, and names that stay text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from afinar.labelling.run_report import RunReport, RunStats
from afinar.labelling.stats import BINS, Baseline, LabelStats
from afinar.report.labelling import LabelRun, label_page

from tests.report.test_page import NASTY, Reader


def histogram(**bins: int) -> tuple[int, ...]:
    """Counts by bin: `histogram(b19=3)`."""
    return tuple(bins.get(f"b{place}", 0) for place in range(BINS))


NOW = LabelStats({NASTY: 300, "rust": 600}, histogram(b19=600, b10=300), 735.0)
THEN = LabelStats({"rust": 400, "slate": 400}, histogram(b19=800), 780.0)
EXAMPLE = {"uri": f"/archive/{NASTY}.jpg", "reason": "corrupt", "detail": NASTY}


def run_of(before: Baseline | None, answers: LabelStats = NOW, **more: Any) -> LabelRun:
    tally = RunStats(answers, Counter({"corrupt": 2}), {"corrupt": [EXAMPLE]})
    summary = {
        "predictions": f"/out/{NASTY}", "model": "/models@3-abc", "listed": 1003, "labelled": answers.pictures,
        "rejected": 3, "skipped": 1000 - answers.pictures, "rejects_by_reason": {"corrupt": 2, "empty": 1},
        "images_per_second": 120.0, "seconds": 95.0, "stages": {"decode": 30.0, "forward": 60.0}, "notes": [NASTY],
        **more,
    }  # fmt: skip
    account = RunReport(tally, before)
    return LabelRun(
        run="20260101T000000Z-abc",
        source=f"/{NASTY}",
        partition="3-abc",
        summary=summary,
        account=account,
    )


@pytest.fixture(scope="module")
def page() -> str:
    return label_page(run_of(Baseline(THEN, f"the previous run {NASTY}")))


def text_of(page: str) -> str:
    return " ".join(Reader(page).text.split())


def test_names_stay_text(page: str) -> None:
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.tags.count("b") == len(re.findall(r"<b>", page))
    for name in (f"Labels of /{NASTY}", f"/archive/{NASTY}.jpg", f"/out/{NASTY}/parts/model=3-abc"):
        assert name in reader.text


def test_the_page_needs_no_network(page: str) -> None:
    assert Reader(page).addresses == []
    assert not re.search(r"https?://|url\(|@import", page)


def test_it_says_what_was_done_and_how_it_differs(page: str) -> None:
    text = text_of(page)
    for phrase in (
        "1,003 listed = 900 labelled + 3 rejected + 100 skipped",
        "81.7%mean confidence",
        "limited by forward (67%)",
        "Drift. Class shares differ from the previous run",
        "Drift. Confidence differs from the previous run",
        "2 min in all",
        f"{NASTY} 0.0% → 33.3%",
    ):
        assert phrase in text, phrase


def test_a_class_is_shown_beside_its_share_before(page: str) -> None:
    table = page.partition("What it saw")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    shown = {row[0]: row[2:] for row in rows}
    assert next(iter(shown)) == "rust", "the most frequent first"
    assert (shown["rust"], shown["slate"]) == (
        ["600", "66.7 %", "50.0 %"],
        ["0", "0.0 %", "50.0 %"],
    )
    assert 'style="width:100.00%"' in rows[0][1]
    assert 'style="left:75.00%"' in rows[0][1], "half, beside two thirds"


def test_the_histogram_stands_beside_the_one_before(page: str) -> None:
    drawing = page.partition("<svg")[2].partition("</svg>")[0]
    heights = [float(height) for height in re.findall(r'<rect[^>]*height="([0-9.]+)"', drawing)]
    assert len(heights) == BINS
    assert heights[10] == pytest.approx(heights[19] / 2, abs=0.02)
    assert sum(height > 0 for height in heights) == 2
    (line,) = re.findall(r'points="([^"]+)"', drawing)
    assert len(line.split()) == 2 * BINS
    assert line.split()[-1].split(",")[1] == "0.0", (
        "all of the run before was in the last bin, the highest"
    )
    assert "0.50 to 0.55: 300 pictures, 33.3%" in drawing


def test_rejects_have_examples_and_those_of_earlier_runs_are_counted(page: str) -> None:
    table = page.partition("What was rejected")[2].partition("</table>")[0]
    rows = [" ".join(Reader(row).text.split()) for row in table.split("<tr>")[2:]]
    assert rows[0] == f"corrupt2/archive/{NASTY}.jpg{NASTY}"
    assert rows[1] == "empty1by earlier runs"


def test_a_first_run_is_compared_with_nothing() -> None:
    page = label_page(run_of(None))
    text = text_of(page)
    assert "this is the first run of this source" in text
    assert "drift" not in text.lower()
    assert "polyline" not in page
    assert "share before" not in text


def test_a_run_of_rejects_alone_has_a_page() -> None:
    run = run_of(Baseline(THEN, "the previous run"), LabelStats(), stages={})
    text = text_of(label_page(run))
    assert "No picture was labelled" not in text, (
        "the classes that were there before are shown as gone"
    )
    assert "Nothing was labelled, so there is nothing to compare" in text
    assert "How sure it was" not in text
    first = replace(run, account=RunReport(RunStats(), None))
    assert "No picture was labelled" in text_of(label_page(first))


def test_an_interrupted_run_that_was_completed_is_told_with_it() -> None:
    assert "900 pictures were labelled" in text_of(
        label_page(run_of(None, labelled=10, skipped=990))
    )
    assert "interrupted" not in text_of(label_page(run_of(None)))


def test_the_snippets_name_the_folder_as_it_is() -> None:
    run = run_of(None, predictions="/it's here")
    page = Reader(label_page(run)).text
    assert "FROM '/it''s here/parts/model=3-abc/*.parquet'" in page
    assert """open_predictions("/it's here", '3-abc')""" in page
