"""Comparisons on several datasets: on which of them does transfer gain?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afinar.cli.compare import describe
from afinar.comparison.driver import CompareOutcome
from afinar.report.compare import record_comparisons
from afinar.storage.arrow import from_parquet
from tests.archives import ingest
from tests.comparison.runs import compare_all, refuse_launch
from tests.conftest import Trained, make_archive
from tests.features.jobs import put_weights
from tests.report.html import assert_sound


@pytest.fixture(scope="module")
def compared(
    trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[CompareOutcome], dict[str, Any]]:
    """Return a comparison on the session's dataset, and on one whose name is hostile."""
    folder = tmp_path_factory.mktemp("datasets")
    weights = put_weights(folder / "small.safetensors")
    other = str(folder / "<b>slate&rust")
    ingest(make_archive(folder / "pictures", 30, ("slate", "rust")), other)
    options: dict[str, Any] = {"cut": "6", "head": "linear", "seeds": 1}
    datasets = f"{trained.dataset},{other}"
    outcomes = compare_all(datasets, folder / "runs", weights, regime="frozen,scratch", **options)
    again = compare_all(
        datasets, folder / "runs", weights, refuse_launch, regime="frozen,scratch", **options
    )
    assert [outcome.computed for outcome in again] == [0, 0]
    return folder, outcomes, record_comparisons(outcomes)


def test_each_dataset_has_its_rows_and_a_verdict_on_transfer(
    compared: tuple[Path, list[CompareOutcome], dict[str, Any]],
) -> None:
    _, outcomes, summary = compared
    summary = json.loads(json.dumps(summary))
    assert [part["dataset"] for part in summary["datasets"]] == [o.dataset for o in outcomes]
    for outcome, part in zip(outcomes, summary["datasets"], strict=True):
        transfer, rows = outcome.table.transfer, outcome.table.rows
        assert transfer is not None
        first, second = rows[transfer.transferred - 1], rows[transfer.scratch - 1]
        assert (first.regime, second.regime) == ("frozen", "scratch")
        difference = first.test.value - second.test.value
        assert transfer.difference.low <= difference <= transfer.difference.high
        assert summary["transfer"][outcome.dataset] == part["transfer"]
        assert Path(part["report"]).is_file()


def test_page_and_table_have_both_datasets(
    compared: tuple[Path, list[CompareOutcome], dict[str, Any]],
) -> None:
    _, outcomes, summary = compared
    page = Path(summary["report"]).read_text()
    reader = assert_sound(page)
    assert "Where transfer gains" in reader.words
    rows = from_parquet(Path(summary["table"]).read_bytes()).to_pylist()
    assert len(rows) == sum(len(outcome.table.rows) for outcome in outcomes)
    assert {row["dataset"] for row in rows} == {outcome.dataset for outcome in outcomes}
    text = describe(summary)
    assert all(f"{outcome.dataset}, version 1" in text for outcome in outcomes)
    assert text.count("points on the test split") == 2
