"""The report: one page, no network, and no name that becomes markup."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from afinar import open_dataset
from afinar.config.ingest import IngestConfig
from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset
from afinar.evaluation.comparison import RunResult, read_run
from afinar.ingest.driver import Ingest
from afinar.predictions.schema import REJECTS
from afinar.report.page import LabelledArchive, comparison_page, run_page
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.publish import publish
from afinar.training.task import plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor

from tests.conftest import jpeg

NASTY = "<script>alert('x')</script> & $x_1$"


CLASS = NASTY.replace("/", "\N{FRACTION SLASH}")
LEDGER = {
    "first_batch_s": 0.25, "waiting_s": 1.5, "copy_s": 0.125, "augment_s": 0.5, "prepare_s": 0.25,
    "compute_s": 7.75, "seconds": 10.0,
    "limit": f"Computing took most of the time {NASTY}.",
}  # fmt: skip


@dataclass(frozen=True)
class ExportResult:
    dataset: Dataset
    runs: list[RunResult]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """Runs on pictures and classes with names that would like to be markup."""
    folder = tmp_path_factory.mktemp("report")
    for name, tint in ((CLASS, (60, 140, 60)), ("rust", (170, 80, 50))):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(40):
            (folder / "pictures" / name / f'"><b>{number}.jpg').write_bytes(
                jpeg(number + 50 * len(name), tint=tint)
            )
    dataset, models = str(folder / "dataset"), str(folder / "models")
    Ingest(
        IngestConfig(source=str(folder / "pictures"), dataset=dataset, size=64), InlineExecutor()
    ).run()
    runs = [
        _run(dataset, models, regime, epochs) for regime, epochs in (("scratch", 1), ("full", 4))
    ]
    return ExportResult(open_dataset(dataset), runs)


@pytest.fixture(scope="module")
def page(made: ExportResult) -> str:
    """The comparison's page, with a reject in the archive."""
    reject = {"uri": f"/archive/{NASTY}.jpg", "etag": "e", "reason": "corrupt", "detail": NASTY}
    archive = LabelledArchive(
        summary={
            "listed": 3, "labelled": 2, "rejected": 1, "skipped": 0, "images_per_second": 9.0,
            "labels": {CLASS: 1, "rust": 1},
        },
        rejects=pa.Table.from_pylist([reject], schema=REJECTS),
        note="Two of them are right.",
    )  # fmt: skip
    return comparison_page(f"Report of {NASTY}", made.dataset, made.runs, archive)


def one_wrong(run: RunResult) -> RunResult:
    """The same run with its surest answer wrong."""
    rows = run.test.sort_by([("score", "descending")]).to_pylist()
    rows[0]["predicted"] = next(name for name in run.version.classes if name != rows[0]["label"])
    rows[1:] = [{**row, "predicted": row["label"]} for row in rows[1:]]
    return replace(run, test=pa.Table.from_pylist(rows, schema=run.test.schema))


@pytest.fixture(scope="module")
def rich(made: ExportResult) -> RunResult:
    """A run that kept recalls, a temperature and a ledger of its second epoch on."""
    run = one_wrong(made.runs[1])
    metrics = copy.deepcopy(run.version.metrics)
    metrics["test"] |= {
        "recall": {CLASS: 0.875, "rust": None},
        "macro_f1": 0.8125,
        "auroc": 0.96875,
        "top5": None,
    }
    first = {name: value for name, value in run.history[0].items() if name != "ledger"}
    history = [first, *({**row, "ledger": LEDGER} for row in run.history[1:])]
    return replace(
        run, version=replace(run.version, metrics=metrics, temperature=1.75), history=history
    )


@pytest.fixture(scope="module")
def of_one(made: ExportResult, rich: RunResult) -> str:
    """The page of that run."""
    return run_page(f"Report of {NASTY}", made.dataset, rich)


def _run(dataset: str, models: str, regime: str, epochs: int) -> RunResult:
    config = TrainConfig(
        dataset=dataset, models=models, backbone="small_cnn", regime=regime, weights="none", input_size=64,
        epochs=epochs, batch_size=8,
    )  # fmt: skip
    task = plan_training(config, regime)
    return read_run(open_store(models), publish(task, train(task, Group()), 1.0))


class Reader(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in {"src", "href", "srcset"}
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("which", ["page", "of_one"])
def test_names_stay_text(which: str, request: pytest.FixtureRequest) -> None:
    page: str = request.getfixturevalue(which)
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.tags.count("b") == len(re.findall(r"<b>", page))
    assert f"Report of {NASTY}" in reader.text
    assert (f"/archive/{NASTY}.jpg" if which == "page" else CLASS) in reader.text


@pytest.mark.parametrize("which", ["page", "of_one"])
def test_the_page_needs_no_network(which: str, request: pytest.FixtureRequest) -> None:
    page: str = request.getfixturevalue(which)
    reader = Reader(page)
    assert reader.addresses
    assert all(address.startswith("data:image/") for address in reader.addresses)
    assert not re.search(r"https?://|url\(|@import", page)


def test_it_says_what_was_asked_of_it(page: str) -> None:
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


def test_pictures_are_real(page: str) -> None:
    import base64
    import io

    from PIL import Image

    addresses = Reader(page).addresses
    kinds = [address.split(";")[0].removeprefix("data:image/") for address in addresses]
    assert kinds.count("png") == 2, "curves and confusion matrix"
    assert kinds.count("jpeg") >= 12, "six of each class"
    for address in addresses:
        Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).verify()


def test_it_can_be_written(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    assert (tmp_path / "report.html").stat().st_size > 20_000


def test_a_run_is_told_whole(of_one: str, rich: RunResult) -> None:
    text = " ".join(Reader(of_one).text.split())
    tests = len(rich.test)
    for phrase in (
        f"Model {rich.version.id}: small_cnn",
        f"1 of {tests} test pictures are wrong. The ones it was surest of",
        "0.812test macro F1",
        "0.969test AUROC",
        "none in test",
        "87.5 %",
        "temperature of 1.75",
        f"{LEDGER['limit']}",
        "batch-size8",
        "regimefull",
        f"torch{rich.version.lineage['libraries']['torch']}",
        f"on version 1 of {rich.version.lineage['dataset']['uri']}",
    ):
        assert phrase in text, phrase
    assert "top-5" not in text, "None for few classes"


def test_the_ledger_has_a_row_for_each_epoch_that_kept_one(of_one: str) -> None:
    table = of_one.partition("Where its time went")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert [row[0] for row in rows] == ["2", "3", "4"]
    assert all(
        row[1:] == ["0.25 s", "1.50 s", "0.12 s", "0.50 s", "0.25 s", "7.75 s", "10.00 s"]
        for row in rows
    )


def test_what_an_older_run_did_not_keep_is_left_out(made: ExportResult) -> None:
    run = made.runs[0]
    metrics = {
        **run.version.metrics,
        "test": {name: run.version.metrics["test"][name] for name in ("loss", "top1")},
    }
    history = [
        {name: value for name, value in row.items() if name != "ledger"} for row in run.history
    ]
    older = replace(run, version=replace(run.version, metrics=metrics), history=history)
    text = Reader(run_page("An older run", made.dataset, older)).text
    for heading in ("Recall by class", "Where its time went", "macro F1", "AUROC"):
        assert heading not in text
    for heading in ("Confusion matrix", "Configuration", "calibration error"):
        assert heading in text


def test_of_many_classes_the_pairs_it_confuses_most_are_named(made: ExportResult) -> None:
    classes = [f"kind {number}" for number in range(40)]
    wrong = [(0, 1)] * 3 + [(5, 2)] * 2 + [(7, 8)]
    right = [(number, number) for number in range(10)]
    rows = [
        {
            "row": row,
            "sample_id": str(row),
            "label": classes[true],
            "predicted": classes[guess],
            "score": 0.9,
        }
        for row, (true, guess) in enumerate(wrong + right)
    ]
    run = made.runs[0]
    many = replace(
        run, version=replace(run.version, classes=classes), test=pa.Table.from_pylist(rows)
    )
    page = run_page("Many classes", made.dataset, many)
    assert "Confusion matrix" not in page
    table = page.partition("What it confuses most on test")[2].partition("</table>")[0]
    pairs = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert pairs == [
        ["kind 0", "kind 1", "3"],
        ["kind 5", "kind 2", "2"],
        ["kind 7", "kind 8", "1"],
    ]
