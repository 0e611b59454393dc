"""Pages of 1,000 classes and 100,000 predictions: seconds to build, size, seconds to open."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from playwright.sync_api import sync_playwright

from afinar.config.ingest import IngestConfig
from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.evaluation.comparison import EvaluatedRun, read_run
from afinar.ingestion.driver import run_ingest
from afinar.labelling.contact_sheet import SCHEMA, ContactSheet
from afinar.labelling.run_report import RunReport, RunStats
from afinar.labelling.stats import count_labels
from afinar.report.labelling import contact_sheets, label_page
from afinar.report.training import training_page
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.publish import publish
from afinar.training.task import plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor
from tests.bench.pictures import SMALL, photograph
from tests.bench.table import Table
from tests.bench.world import NotMeasuredError, in_memory
from tests.report.chromium import CHROMIUM
from tests.report.test_labelling import run_of
from tests.report.test_training import thousand_classes

CLASSES = 1000
PREDICTIONS = 100_000
BUILD_S = 30.0
BYTES = 10_000_000
OPEN_S = 2.0

_OF_CLASS = 6  # pictures of each class in the dataset
_DISTINCT = 100  # pictures by pixels


def pages() -> bool:
    """Require the page of a training and of a labelling to be quick and small."""
    if CHROMIUM is None:
        raise NotMeasuredError("there is no chromium")
    table = Table(("page", "seconds to build", "MB", "seconds to open", "met"))
    with in_memory() as folder:
        dataset, run = _trained(folder)
        large = thousand_classes(dataset, run)
        _measure(table, folder, "training", lambda: training_page("Large", dataset, large))
        _measure(table, folder, "labelling", lambda: _labelling(dataset, large.test))
    return table.show(f"pages: {CLASSES:,} classes, {PREDICTIONS:,} predictions")


def _trained(folder: Path) -> tuple[Dataset, EvaluatedRun]:
    """Return a dataset of 1,000 classes, and a training of one epoch on it."""
    encoded = [photograph(SMALL, seed) for seed in range(_DISTINCT)]
    for number in range(CLASSES * _OF_CLASS):
        path = folder / "pictures" / f"class {number % CLASSES:04d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Files of the same pixels differ behind the end marker.
        path.write_bytes(encoded[number % _DISTINCT] + number.to_bytes(4, "big"))
    dataset, models = str(folder / "dataset"), str(folder / "models")
    config = IngestConfig(source=str(folder / "pictures"), dataset=dataset, size=224)
    run_ingest(config, InlineExecutor())
    task = plan_training(
        TrainConfig(
            dataset=dataset, models=models, backbone="small_cnn", regime="scratch", weights="none",
            input_size=64, epochs=1,
        ),
        "run",
    )  # fmt: skip
    version = publish(task, train(task, Group()), 1.0)
    return open_dataset(dataset), read_run(open_store(models), version)


def _labelling(dataset: Dataset, test: pa.Table) -> str:
    """Return the page of a labelling with the classes and probabilities of a test."""
    index = dataset.index.select(["uri", "etag"]).take(test.column("row"))
    rows = pa.table(
        {
            "uri": index.column("uri"),
            "etag": index.column("etag"),
            "label": test.column("predicted"),
            "score": test.column("score"),
        }
    ).cast(SCHEMA)
    stats, sheet = count_labels(rows), ContactSheet()
    sheet.add(rows)
    sheets = contact_sheets(sheet.table(), stats)
    report = RunReport(RunStats(stats, sheet=sheet))
    return label_page(replace(run_of(None, stats), report=report, sheets=sheets))


def _measure(table: Table, folder: Path, name: str, build: Callable[[], str]) -> None:
    started = time.monotonic()
    text = build()
    built = time.monotonic() - started
    file = folder / f"{name}.html"
    file.write_text(text, encoding="utf-8")
    opened = _open(file)
    size = file.stat().st_size
    is_met = built <= BUILD_S and size <= BYTES and opened <= OPEN_S
    table.limit(name, f"{built:.1f}", f"{size / 1e6:.1f}", f"{opened:.2f}", holds=is_met)


def _open(file: Path) -> float:
    """Return the seconds until a page has loaded and has been laid out, in a new browser tab."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        started = time.monotonic()
        page.goto(file.as_uri(), wait_until="load")
        page.evaluate("document.documentElement.getBoundingClientRect().height")
        seconds = time.monotonic() - started
        browser.close()
    return seconds
