"""The pages in a browser, if one is installed: no horizontal scroll, all pictures load."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from afinar.labelling.stats import Baseline
from afinar.predictions.schema import REJECTS
from afinar.report.comparison import LabelledArchive, comparison_page
from afinar.report.labelling import label_page
from afinar.report.nights import night_page
from afinar.report.review import review_page
from afinar.report.training import training_page
from tests.report.conftest import Compared, with_one_mistake
from tests.report.html import LONG, NASTY, RIGHT_TO_LEFT
from tests.report.test_labelling import THEN, run_of
from tests.report.test_nights import index_of, page_of
from tests.report.test_review import queue_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
WIDTHS = (390, 1280)

# Before the page's own scripts: errors are collected, and an alert would be one.
HEAD = """<script>
window.errors = [];
window.onerror = (message) => window.errors.push(message);
window.alert = () => window.errors.push("a name was executed");
</script>"""
# After the page: report to the page around the frame.
PROBE = """<script>
for (const image of document.images) image.loading = "eager";
setTimeout(() => parent.postMessage({
  scroll: document.documentElement.scrollWidth, width: innerWidth, errors: window.errors,
  images: document.images.length,
  broken: [...document.images].filter((image) => !image.naturalWidth).length,
}, "*"), 1500);
</script>"""


def measure(folder: Path, page: str, width: int) -> dict[str, Any]:
    """Return what the browser says of a page in a frame: its window is never so narrow."""
    inner = page.replace("<head>", f"<head>{HEAD}", 1).replace("</body>", f"{PROBE}</body>", 1)
    frame = f'<iframe width="{width}" height="900" srcdoc="{html.escape(inner)}"></iframe>'
    listen = (
        "<script>addEventListener('message', (event) => {"
        "document.title = JSON.stringify(event.data); });</script>"
    )
    file = folder / "harness.html"
    file.write_text(
        f"<!doctype html><html><head><meta charset='utf-8'><title>nothing</title>{listen}</head>"
        f"<body style='margin:0'>{frame}</body></html>",
        encoding="utf-8",
    )
    assert BROWSER
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1400,1000",
            "--virtual-time-budget=20000",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return found


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
def test_pages_fit_a_phone_and_a_desktop(compared: Compared, tmp_path: Path) -> None:
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
    pages = {
        "training": training_page(LONG, compared.dataset, runs[1], champion=runs[0]),
        "comparison": comparison_page(RIGHT_TO_LEFT, compared.dataset, runs, archive),
        "labelling": label_page(run_of(Baseline(THEN, f"the previous run {NASTY}"))),
        "review": review_page(queue_of(tmp_path / "queue", 3, missing=1)),
        "night": night_page(page_of(compared)),
        "nights": index_of(60),
    }
    for name, page in pages.items():
        for width in WIDTHS:
            found = measure(tmp_path, page, width)
            assert found["width"] == width
            assert found["scroll"] <= width, (name, width)
            assert found["errors"] == [], (name, width)
            assert found["broken"] == 0, (name, width)
            assert found["images"] or name in {"labelling", "nights"}
