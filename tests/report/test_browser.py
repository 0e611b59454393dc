"""The pages in Chromium, if it is installed: layout, scripts, names as text, accessibility."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from afinar.config.ingest import IngestConfig
from afinar.labelling.stats import Baseline
from afinar.predictions.schema import REJECTS
from afinar.report.comparison import LabelledArchive, comparison_page
from afinar.report.dataset import dataset_page
from afinar.report.labelling import label_page
from afinar.report.nights import night_page
from afinar.report.review import review_page
from afinar.report.training import training_page
from tests.report.conftest import Compared, with_one_mistake
from tests.report.html import LONG, NASTY, RIGHT_TO_LEFT
from tests.report.test_labelling import THEN, run_of
from tests.report.test_nights import index_of, page_of
from tests.report.test_review import queue_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
WIDTHS = (390, 1280)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
INGESTED = {
    "listed": 41,
    "added": 40,
    "changed": 0,
    "unchanged": 0,
    "rejects": 1,
    "left_out": {"of other formats": 7},
    "notes": [NASTY, LONG],
    "seconds": 1.0,
    "stages": {},
}
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def pages(compared: Compared, tmp_path: Path) -> dict[str, str]:
    """Pages with names that look like markup, are very long, or are written right to left."""
    runs = [with_one_mistake(run) for run in compared.runs]
    archive = LabelledArchive(
        summary={
            "listed": 1,
            "labelled": 0,
            "rejected": 1,
            "skipped": 0,
            "images_per_second": 9.0,
            "labels": {NASTY: 1, RIGHT_TO_LEFT: 1, LONG: 1},
        },
        rejects=REJECTS.empty_table(),
    )
    (tmp_path / "queue").mkdir()
    return {
        "dataset": dataset_page(
            compared.dataset, INGESTED, IngestConfig(source=NASTY, dataset=LONG)
        ),
        "training": training_page(LONG, compared.dataset, runs[1], champion=runs[0]),
        "comparison": comparison_page(RIGHT_TO_LEFT, compared.dataset, runs, archive),
        "labelling": label_page(run_of(Baseline(THEN, f"the previous run {NASTY}"))),
        "review": review_page(queue_of(tmp_path / "queue", 3, missing=1)),
        "night": night_page(page_of(compared)),
        "nights": index_of(60),
    }


def test_pages_fit_run_and_are_accessible(
    browser: Browser, pages: dict[str, str], tmp_path: Path
) -> None:
    for name, text in pages.items():
        file = tmp_path / f"{name}.html"
        file.write_text(text, encoding="utf-8")
        for width in WIDTHS:
            for scheme in SCHEMES:
                found = problems(browser, file, width, scheme)
                assert not found, (name, width, scheme, found)


def problems(
    browser: Browser, file: Path, width: int, scheme: Literal["light", "dark"]
) -> list[Any]:
    """Return what is wrong with a page: errors, a horizontal scroll, pictures, accessibility."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    found: list[Any] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda message: found.append(message.text))
    # Without a listener a dialog is dismissed by itself.
    page.add_init_script("window.alert = (text) => console.error(`executed: ${text}`)")
    page.goto(file.as_uri())
    found += [f"{count} pictures do not load"] if (count := _broken(page)) else []
    scroll = page.evaluate("document.documentElement.scrollWidth")
    found += [f"it is {scroll} px wide"] if scroll > width else []
    page.evaluate(AXE)
    for violation in page.evaluate("axe.run()")["violations"]:
        if violation["impact"] in {"serious", "critical"}:
            found.append((violation["id"], [node["html"] for node in violation["nodes"][:3]]))
    context.close()
    return found


def _broken(page: Page) -> int:
    """Load all pictures, those out of sight too, and return how many cannot be shown."""
    count: int = page.evaluate(
        """async () => {
          const images = [...document.images];
          for (const image of images) image.loading = "eager";
          const loaded = images.map((image) => image.decode().then(() => 0, () => 1));
          return (await Promise.all(loaded)).reduce((sum, each) => sum + each, 0);
        }"""
    )
    return count
