"""Page of a comparison: self-contained, and names stay text."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from afinar.predictions.schema import REJECTS
from afinar.report.comparison import LabelledArchive, comparison_page
from tests.report.conftest import CLASS, Compared, with_one_mistake
from tests.report.html import NASTY, Reader, assert_sound, section


@pytest.fixture(scope="module")
def page(compared: Compared) -> str:
    """The page of two runs, with a reject in the archive."""
    reject = {"uri": f"/archive/{NASTY}.jpg", "etag": "e", "reason": "corrupt", "detail": NASTY}
    archive = LabelledArchive(
        summary={
            "listed": 3,
            "labelled": 2,
            "rejected": 1,
            "skipped": 0,
            "images_per_second": 9.0,
            "labels": {CLASS: 1, "rust": 1},
        },
        rejects=pa.Table.from_pylist([reject], schema=REJECTS),
        note="Two of them are right.",
    )
    return comparison_page(
        f"Report of {NASTY}",
        compared.dataset,
        [with_one_mistake(run) for run in compared.runs],
        archive,
        about="Woven by a test.",
        stretch=True,
    )


def test_names_that_look_like_markup_stay_text(page: str) -> None:
    reader = assert_sound(page)
    assert Reader(section(page, "mistakes")).tags.count("b") == 1, "the title of the mistake"
    assert f"Report of {NASTY}" in reader.text
    assert f"{NASTY}.jpg" in " ".join(reader.titles), "the whole name"


def test_page_has_results_counts_and_verdicts(page: str) -> None:
    text = Reader(page).words
    for phrase in (
        "95 % interval",
        "Confusion matrix of",
        "Rejects, with their reasons",
        "3 = 2 + 1 + 0",
        "scratch",
        "full",
        "Woven by a test.",
        "Their contrast is stretched here",
        "afinar train",
    ):
        assert phrase in text, phrase
    assert ("Holds." in text) or ("Does not hold." in text)


def test_regimes_classes_and_labels_are_tables(page: str, compared: Compared) -> None:
    reader = Reader(page)
    regimes = reader.table_below("regime")
    assert len(regimes) == 2
    by_class = reader.table_below("class", "train")
    assert sum(int(row[3]) for row in by_class) == len(compared.runs[0].test)
    labels = reader.table_below("class", "", "pictures", "share")
    assert [row[2:] for row in labels] == [["1", "50.0 %"], ["1", "50.0 %"]]


def test_images_of_the_page_are_valid(page: str) -> None:
    reader = Reader(page)
    assert len(reader.images) >= 16, "eight of each class"
    for image in reader.images:
        data = (image["src"] or "").split(",")[1]
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


def test_wrong_pictures_are_large(compared: Compared) -> None:
    archive = LabelledArchive(
        summary={"listed": 0, "labelled": 0, "rejected": 0, "skipped": 0, "images_per_second": 0.0},
        rejects=REJECTS.empty_table(),
    )
    runs = [with_one_mistake(run) for run in compared.runs]
    page = comparison_page("Plain", compared.dataset, runs, archive)
    assert "stretched" not in page
    mistakes = section(page, "mistakes")
    assert 'class="tiles large"' in mistakes
    assert "then the true class 2%" in Reader(mistakes).words


def test_page_can_be_written_as_utf8(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    assert (tmp_path / "report.html").stat().st_size > 20_000
