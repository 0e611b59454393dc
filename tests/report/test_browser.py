"""The pages in Chromium: layout, scripts, names as text, accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from afinar.analysis.evaluate import run_evaluation
from afinar.analysis.similar import run_similar
from afinar.config.evaluate import EvaluateConfig
from afinar.config.explain import (
    ExplainAdversarialConfig,
    ExplainFeaturesConfig,
    ExplainIdealConfig,
    ExplainSaliencyConfig,
)
from afinar.config.ingest import IngestConfig
from afinar.config.similar import SimilarConfig
from afinar.explain.driver import (
    explain_adversarial,
    explain_features,
    explain_ideal,
    explain_saliency,
)
from afinar.labelling.stats import Baseline
from afinar.predictions.schema import REJECTS
from afinar.report.compare import record_comparison
from afinar.report.comparison import LabelledArchive, comparison_page
from afinar.report.dataset import dataset_page
from afinar.report.evaluation import record_evaluation
from afinar.report.explain import record_explanation
from afinar.report.labelling import label_page
from afinar.report.nights import night_page
from afinar.report.review import review_page
from afinar.report.similar import record_similar
from afinar.report.training import training_page
from afinar.units.executor import InlineExecutor
from tests.analysis.test_similar import make_pictures
from tests.archives import ingest
from tests.comparison.runs import compare
from tests.conftest import Trained, jpeg
from tests.features.jobs import put_weights
from tests.report.chromium import CHROMIUM, check_page, needs_chromium
from tests.report.conftest import Compared, with_one_mistake
from tests.report.html import LONG, NASTY, RIGHT_TO_LEFT
from tests.report.test_labelling import THEN, run_of
from tests.report.test_nights import index_of, page_of
from tests.report.test_review import queue_of

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
pytestmark = [pytest.mark.slow, needs_chromium]


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
        "review": review_page(queue_of(tmp_path / "queue", 3, missing=1, labels=(NASTY, LONG))),
        "night": night_page(page_of(compared)),
        "nights": index_of(60),
    }


def test_pages_fit_run_and_are_accessible(
    browser: Browser, pages: dict[str, str], tmp_path: Path
) -> None:
    for name, text in pages.items():
        file = tmp_path / f"{name}.html"
        file.write_text(text, encoding="utf-8")
        check_page(browser, file)


def test_pages_of_comparison_and_analysis(
    browser: Browser, trained: Trained, tmp_path: Path
) -> None:
    weights = put_weights(tmp_path / "weights.safetensors")
    compared = compare(
        trained.dataset, tmp_path / "runs", weights, regime="frozen,scratch", fractions="0.5,1"
    )
    check_page(browser, Path(record_comparison(compared)["report"]))

    config = EvaluateConfig(dataset=trained.dataset, model=trained.champion, corruptions="jpeg")
    evaluated = run_evaluation(config, InlineExecutor())
    check_page(browser, Path(record_evaluation(config, evaluated)["report"]))

    dataset = tmp_path / "dataset"
    ingest(make_pictures(tmp_path / "pictures"), dataset)
    similar = SimilarConfig(
        dataset=str(dataset), backbone="small_cnn", weights=weights, cut="auto", input_size=64
    )
    report = Path(record_similar(similar, run_similar(similar, InlineExecutor()))["report"])
    for file in report.parent.glob("*.html"):
        check_page(browser, file)
    check_page(browser, dataset / "index.html")


def test_pages_of_explanations(browser: Browser, trained: Trained, tmp_path: Path) -> None:
    """The file names have markup, many letters, and letters from right to left."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("<script>alert(1)", LONG[:200], RIGHT_TO_LEFT)):
        (folder / f"{name.replace('/', '_')}.jpg").write_bytes(jpeg(number, tint=(60, 140, 60)))
    pictures, out = (str(folder),), str(tmp_path / "out")
    model = trained.champion
    maps = ExplainSaliencyConfig(
        pictures=pictures, model=model, out=out, method="gradcam,integrated,occlusion"
    )
    ideal = ExplainIdealConfig(
        class_="moss,rust", model=model, out=out, steps=6, seeds=2, dataset=trained.dataset
    )
    attacks = ExplainAdversarialConfig(
        pictures=pictures, model=model, out=out, target="rust", steps=5
    )
    curve = ExplainAdversarialConfig(
        pictures=(trained.dataset,), model=model, out=out, steps=3, restarts=1
    )
    grids = ExplainFeaturesConfig(pictures=pictures, model=model, out=out, node="3", channels=4)
    executor = InlineExecutor()
    for method, config, outcome in (
        ("saliency", maps, explain_saliency(maps, executor)),
        ("ideal", ideal, explain_ideal(ideal, executor)),
        ("adversarial", attacks, explain_adversarial(attacks, executor)),
        ("adversarial", curve, explain_adversarial(curve, executor)),
        ("features", grids, explain_features(grids, executor)),
    ):
        check_page(browser, Path(record_explanation(method, config, outcome)["report"]))
    check_page(browser, Path(out) / "index.html")


def test_review_of_the_pictures_of_one_class(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    file = tmp_path / "review.html"
    queue = queue_of(tmp_path / "queue", 4, labels=(NASTY, "rust"))
    file.write_text(review_page(queue), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    cards = page.locator("fieldset")
    page.select_option("#filter", "rust")
    assert [cards.nth(number).is_visible() for number in range(4)] == [False, True, False, True]

    page.keyboard.press("u")  # the second picture, the first that is shown
    page.keyboard.press("ArrowRight")
    page.keyboard.press("2")  # its second guess, which is not the predicted class
    page.keyboard.press("ArrowRight")  # there is no further one
    progress = page.locator("#progress")
    assert progress.inner_text() == "1 of 4 labelled, 1 of them corrected, 1 unusable"
    assert page.locator("#accept").is_disabled(), "both pictures of the class are done"
    page.select_option("#filter", index=0)
    page.click("#accept")
    assert progress.inner_text() == "3 of 4 labelled, 1 of them corrected, 1 unusable"
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "corrections-1-x.csv"
    page.close()
