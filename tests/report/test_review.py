"""Page of the review queue."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from afinar.predictions.review_queue import ReviewQueue
from afinar.predictions.schema import PREDICTIONS
from afinar.report.review import review_page
from afinar.storage.open import open_store
from tests.conftest import jpeg

NASTY = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """Collects the cards of a page and everything that it loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cards: list[dict[str, str | None]] = []
        self.choices: list[str | None] = []
        self.images: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.scripts += tag == "script"
        if tag == "fieldset":
            self.cards.append(attributes)
        if attributes.get("type") == "radio":
            self.choices.append(attributes["value"])
        if tag == "img":
            self.images.append(attributes["src"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def queue_of(
    folder: Path, count: int, missing: int = 0, labels: tuple[str, ...] = (NASTY,)
) -> ReviewQueue:
    """Return a queue of pictures, of which the last `missing` do not exist.

    Their predicted classes are `labels` in turn, by default one that looks like markup.
    """
    for number in range(count - missing):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    rows = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        etag = next(
            (info.etag for info in open_store(str(folder)).walk() if info.name == path.name), "gone"
        )
        label = labels[number % len(labels)]
        rows.append(
            {
                "uri": str(path),
                "sample_id": str(number),
                "etag": etag,
                "label": label,
                "score": 0.4,
                "top_labels": [label, "rust" if label == NASTY else NASTY],
                "top_scores": [0.4, 0.35],
                "model_version": "1-x",
            }
        )
    table = pa.Table.from_pylist(rows, schema=PREDICTIONS)
    return ReviewQueue(
        model="models@1-x", classes=[NASTY, "rust"], threshold=0.5, table=table, below=1234
    )


def test_page_shows_pictures_and_names_stay_text(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, 3, missing=1)
    html = review_page(queue)
    page = Page(html)
    assert [card["data-uri"] for card in page.cards] == queue.table.column("uri").to_pylist()
    assert {card["data-label"] for card in page.cards} == {NASTY}
    assert page.choices == [NASTY, "rust"] * 3
    assert page.scripts == 1, "its own"
    assert len(page.images) == 2
    assert all(image.startswith("data:image/jpeg;base64,") for image in page.images)
    assert "cannot be read any more" in page.text
    assert "1,234" in page.text
    assert not re.search(r"https?://|url\(|@import", html)


def test_classes_that_differ_in_case_are_shown_apart(tmp_path: Path) -> None:
    page = review_page(queue_of(tmp_path, 3, labels=("cat", "Cat")))
    shown = re.findall(r'<option value="([cC]at)">[cC]at \((\d)\)', page)
    assert sorted(shown) == [("Cat", "1"), ("cat", "2")]
    assert 'id="filter"' not in review_page(queue_of(tmp_path, 2)), "one class"


def test_page_has_at_most_the_configured_number_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afinar.report.review.PICTURES", 4)
    page = Page(review_page(queue_of(tmp_path, 6)))
    assert [card["data-uri"] for card in page.cards] == [
        str(tmp_path / f"{number}.jpg") for number in range(4)
    ]


def test_picture_that_changed_after_labelling_is_not_shown(
    tmp_path: Path,
) -> None:
    queue = queue_of(tmp_path, 2)
    (tmp_path / "0.jpg").write_bytes(jpeg(99, (200, 100)))
    page = Page(review_page(queue))
    assert len(page.images) == 1
    assert len(page.cards) == 2


def test_pictures_in_a_bucket_are_shown(bucket: str) -> None:
    store = open_store(bucket)
    store.put_if_absent("a scan.jpg", jpeg(1))
    (info,) = store.walk()
    row = {
        "uri": info.uri,
        "etag": info.etag,
        "label": "rust",
        "score": 0.4,
        "top_labels": [],
        "top_scores": [],
    }
    table = pa.Table.from_pylist([row], schema=PREDICTIONS)
    page = Page(
        review_page(
            ReviewQueue(model="m@1-x", classes=["rust"], threshold=0.5, table=table, below=1)
        )
    )
    assert [card["data-uri"] for card in page.cards] == [f"{bucket}/a scan.jpg"]
    assert len(page.images) == 1


def test_page_is_usable_by_keyboard(tmp_path: Path) -> None:
    """The page says what the keys do, and its script handles each of them."""
    html = review_page(queue_of(tmp_path, 2))
    assert "Keys: <kbd>1</kbd>–<kbd>9</kbd>" in html
    for handled in ('"Enter"', '"ArrowRight"', '"ArrowLeft"', '"u"', "/^[1-9]$/"):
        assert handled in html
    assert "--add-labels" in html
