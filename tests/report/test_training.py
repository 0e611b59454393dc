"""Page of a training run: self-contained, and names stay text."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pyarrow as pa
import pytest

from afinar.evaluation.comparison import EvaluatedRun
from afinar.report.training import training_page
from tests.report.conftest import CLASS, Compared
from tests.report.html import NASTY, Reader

TIMES = {
    "first_batch_s": 0.25,
    "waiting_s": 1.5,
    "copy_s": 0.125,
    "augment_s": 0.5,
    "prepare_s": 0.25,
    "compute_s": 7.75,
    "seconds": 10.0,
    "limit": f"Computing took most of the time {NASTY}.",
}


def with_one_mistake(run: EvaluatedRun) -> EvaluatedRun:
    """Return the same run with only its prediction of the highest score wrong."""
    rows = run.test.sort_by([("score", "descending")]).to_pylist()
    rows[0]["predicted"] = next(name for name in run.version.classes if name != rows[0]["label"])
    rows[1:] = [{**row, "predicted": row["label"]} for row in rows[1:]]
    return replace(run, test=pa.Table.from_pylist(rows, schema=run.test.schema))


@pytest.fixture(scope="module")
def rich(compared: Compared) -> EvaluatedRun:
    """A run that recorded recalls, a temperature, and times from its second epoch on."""
    run = with_one_mistake(compared.runs[1])
    metrics = copy.deepcopy(run.version.metrics)
    metrics["test"] |= {
        "recall": {CLASS: 0.875, "rust": None},
        "macro_f1": 0.8125,
        "auroc": 0.96875,
        "top5": None,
    }
    first = {name: value for name, value in run.history[0].items() if name != "ledger"}
    history = [first, *({**row, "ledger": TIMES} for row in run.history[1:])]
    return replace(
        run, version=replace(run.version, metrics=metrics, temperature=1.75), history=history
    )


@pytest.fixture(scope="module")
def page(compared: Compared, rich: EvaluatedRun) -> str:
    """The page of that run."""
    return training_page(f"Report of {NASTY}", compared.dataset, rich)


def test_names_that_look_like_markup_stay_text(page: str) -> None:
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.tags.count("b") == len(re.findall(r"<b>", page))
    assert f"Report of {NASTY}" in reader.text
    assert CLASS in reader.text


def test_page_needs_no_network(page: str) -> None:
    reader = Reader(page)
    assert reader.addresses
    assert all(address.startswith("data:image/") for address in reader.addresses)
    assert not re.search(r"https?://|url\(|@import", page)


def test_page_has_everything_that_the_run_recorded(page: str, rich: EvaluatedRun) -> None:
    text = " ".join(Reader(page).text.split())
    tests = len(rich.test)
    for phrase in (
        f"Model {rich.version.id}: small_cnn",
        f"1 of {tests} test pictures are wrong. Those with the highest scores",
        "0.812test macro F1",
        "0.969test AUROC",
        "none in test",
        "87.5 %",
        "temperature of 1.75",
        f"{TIMES['limit']}",
        "batch-size8",
        "regimefull",
        f"torch{rich.version.lineage['libraries']['torch']}",
        f"on version 1 of {rich.version.lineage['dataset']['uri']}",
    ):
        assert phrase in text, phrase
    assert "top-5" not in text, "None for few classes"


def test_times_have_a_row_for_each_epoch_that_recorded_them(page: str) -> None:
    table = page.partition("Time by phase")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert [row[0] for row in rows] == ["2", "3", "4"]
    assert all(
        row[1:] == ["0.25 s", "1.50 s", "0.12 s", "0.50 s", "0.25 s", "7.75 s", "10.00 s"]
        for row in rows
    )


def test_parts_that_an_older_run_did_not_record_are_left_out(compared: Compared) -> None:
    run = compared.runs[0]
    metrics = {
        **run.version.metrics,
        "test": {name: run.version.metrics["test"][name] for name in ("loss", "top1")},
    }
    history = [
        {name: value for name, value in row.items() if name != "ledger"} for row in run.history
    ]
    older = replace(run, version=replace(run.version, metrics=metrics), history=history)
    text = Reader(training_page("An older run", compared.dataset, older)).text
    for heading in ("Recall by class", "Time by phase", "macro F1", "AUROC", "Operating points"):
        assert heading not in text
    for heading in ("Confusion matrix", "Configuration", "calibration error"):
        assert heading in text


def test_operating_points_have_a_row_each_with_intervals_on_test(
    compared: Compared, rich: EvaluatedRun
) -> None:
    counts = {
        "true_positives": 9,
        "false_positives": 1,
        "false_negatives": 3,
        "true_negatives": 12,
        "precision": 0.9,
        "recall": 0.75,
    }
    binary = {
        "positive": CLASS,
        "average_precision": 0.8765,
        "points": [
            {
                "measure": "precision",
                "target": 0.95,
                "threshold": 0.625,
                "val": counts,
                "test": counts,
            },
            {"measure": "recall", "target": 0.99, "threshold": None, "val": None, "test": None},
        ],
        "curve": {
            "threshold": [0.9, 0.1],
            "precision": [1.0, 0.5],
            "recall": [0.5, 1.0],
            "false_positive_rate": [0.0, 1.0],
        },
    }
    metrics = copy.deepcopy(rich.version.metrics)
    metrics["test"]["binary"] = binary
    run = replace(rich, version=replace(rich.version, metrics=metrics))
    page = training_page("Two classes", compared.dataset, run)
    section = page.partition("Operating points</h2>")[2].partition("</section>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in section.split("<tr>")[2:]]
    assert rows == [
        [
            "precision at least 95.0%",
            "0.625",
            "90.0%",
            "75.0%",
            "90.0% (59.6% – 98.2%)",
            "75.0% (46.8% – 91.1%)",
        ],
        ["recall at least 99.0%", "not reached", "", "", "", ""],
    ]
    assert "Average precision on test: 0.87" in section
    assert section.count("data:image/png") == 1
    assert CLASS in Reader(section).text


def test_page_of_many_classes_lists_the_most_confused_pairs(compared: Compared) -> None:
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
    run = compared.runs[0]
    many = replace(
        run, version=replace(run.version, classes=classes), test=pa.Table.from_pylist(rows)
    )
    page = training_page("Many classes", compared.dataset, many)
    assert "Confusion matrix" not in page
    table = page.partition("Most confused classes on test")[2].partition("</table>")[0]
    pairs = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert pairs == [
        ["kind 0", "kind 1", "3"],
        ["kind 5", "kind 2", "2"],
        ["kind 7", "kind 8", "1"],
    ]


@pytest.mark.filterwarnings("error")
def test_class_names_of_any_script_are_text_of_the_page(
    compared: Compared, rich: EvaluatedRun, recwarn: pytest.WarningsRecorder
) -> None:
    """No chart draws them: matplotlib's font lacks most scripts, and a browser finds one."""
    names = ["日本語のねこ", "狗🐕‍🦺"]
    renamed = dict(zip(rich.version.classes, names, strict=True))
    rows = [
        {**row, "label": renamed[row["label"]], "predicted": renamed[row["predicted"]]}
        for row in rich.test.to_pylist()
    ]
    run = replace(
        rich,
        test=pa.Table.from_pylist(rows, schema=rich.test.schema),
        version=replace(rich.version, classes=names),
    )
    page = training_page("قطة", compared.dataset, run)
    matrix = page.partition("Confusion matrix")[2].partition("</table>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", matrix)
    assert [int(cell) for cell in cells] == run.confusion.ravel().tolist()
    for name in names:
        assert matrix.count(f">{name}<") == 2, "a row and a column"
    assert not recwarn.list
