"""Page of a comparison: self-contained, and names stay text."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from afinar.predictions.schema import REJECTS
from afinar.report.comparison import LabelledArchive, comparison_page
from tests.report.conftest import CLASS, Compared
from tests.report.html import NASTY, Reader


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
    return comparison_page(f"Report of {NASTY}", compared.dataset, compared.runs, archive)


def test_names_that_look_like_markup_stay_text(page: str) -> None:
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.tags.count("b") == len(re.findall(r"<b>", page))
    assert f"Report of {NASTY}" in reader.text
    assert f"/archive/{NASTY}.jpg" in reader.text


def test_page_needs_no_network(page: str) -> None:
    reader = Reader(page)
    assert reader.addresses
    assert all(address.startswith("data:image/") for address in reader.addresses)
    assert not re.search(r"https?://|url\(|@import", page)


def test_page_has_results_counts_and_verdicts(page: str) -> None:
    text = Reader(page).text
    for phrase in (
        "95 % interval",
        "Confusion matrix",
        "Rejects, with their reasons",
        "3 = 2 + 1 + 0",
        "scratch",
        "full",
    ):
        assert phrase in text
    assert ("Holds." in text) or ("Does not hold." in text)


def test_images_of_the_page_are_valid(page: str) -> None:
    addresses = Reader(page).addresses
    formats = [address.split(";")[0].removeprefix("data:image/") for address in addresses]
    assert formats.count("png") == 1, "the curves"
    assert formats.count("jpeg") >= 12, "six of each class"
    for address in addresses:
        Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).verify()


def test_page_can_be_written_as_utf8(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    assert (tmp_path / "report.html").stat().st_size > 20_000
