"""The report: one page, no network, and no name that becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import open_dataset
from pipeline.config import IngestConfig, TrainConfig
from pipeline.evaluation.comparison import RunResult, read_run
from pipeline.ingest.job import Ingest
from pipeline.labelling.output import REJECTS
from pipeline.report.page import LabelledArchive, comparison_page
from pipeline.storage.store import open_store
from pipeline.training.group import Group
from pipeline.training.job import plan_training, publish, train
from pipeline.work import InlineExecutor
from tests.conftest import jpeg

NASTY = "<script>alert('x')</script> & $x_1$"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of pictures, classes and rejects with names that would like to be markup."""
    folder = tmp_path_factory.mktemp("report")
    class_name = NASTY.replace("/", "\N{FRACTION SLASH}")
    for name, tint in ((class_name, (60, 140, 60)), ("rust", (170, 80, 50))):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(40):
            (folder / "pictures" / name / f'"><b>{number}.jpg').write_bytes(jpeg(number + 50 * len(name), tint=tint))
    dataset, models = str(folder / "dataset"), str(folder / "models")
    Ingest(IngestConfig(source=str(folder / "pictures"), dataset=dataset, size=64), InlineExecutor()).run()
    runs = [_run(dataset, models, regime, epochs) for regime, epochs in (("scratch", 1), ("full", 4))]
    reject = {"uri": f"/archive/{NASTY}.jpg", "etag": "e", "reason": "corrupt", "detail": NASTY}
    archive = LabelledArchive(
        summary={
            "listed": 3, "labelled": 2, "rejected": 1, "skipped": 0, "images_per_second": 9.0,
            "labels": {class_name: 1, "rust": 1},
        },
        rejects=pa.Table.from_pylist([reject], schema=REJECTS),
        note="Two of them are right.",
    )  # fmt: skip
    return comparison_page(f"Report of {NASTY}", open_dataset(dataset), runs, archive)


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
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_stay_text(page: str) -> None:
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.tags.count("b") == len(re.findall(r"<b>", page))
    assert f"Report of {NASTY}" in reader.text
    assert f"/archive/{NASTY}.jpg" in reader.text


def test_the_page_needs_no_network(page: str) -> None:
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
