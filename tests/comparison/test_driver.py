"""Tables of comparisons in this process, what is computed again, and what is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afinar import open_dataset, open_features, open_model
from afinar.comparison import heads as heads_module
from afinar.comparison.driver import CompareOutcome
from afinar.comparison.heads import subset
from afinar.config.status import StatusConfig
from afinar.dataset.reader import Dataset
from afinar.dataset.shards import MappedShard
from afinar.errors import RequestError
from afinar.report.compare import record_comparison
from afinar.report.status import read_status
from afinar.storage.arrow import from_parquet
from tests.comparison.runs import compare, refuse_launch
from tests.conftest import Trained
from tests.features.jobs import put_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return put_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def outcome(trained: Trained, runs: Path, weights: str) -> CompareOutcome:
    """Return a comparison of two cuts, three heads and two trainings."""
    return compare(
        trained.dataset,
        runs,
        weights,
        regime="frozen,last:1,scratch",
        fractions="0.5,1",
        publish="best",
    )


def test_table_has_a_row_for_each_point_of_the_grid(outcome: CompareOutcome) -> None:
    rows = {(row.cut, row.head, row.regime) for row in outcome.table.rows}
    assert rows == {
        *((cut, head, "frozen") for cut in ("3", "6") for head in ("knn", "linear", "mlp")),
        ("6", "linear", "last:1"),
        ("6", "linear", "scratch"),
    }
    seeds = {(row.head, row.regime): len(row.seeds) for row in outcome.table.rows}
    assert seeds["mlp", "frozen"] == 2
    assert seeds["knn", "frozen"] == seeds["linear", "frozen"] == 1
    curve = {(row.cut, row.head, row.fraction) for row in outcome.table.learning_curve}
    assert curve == {(cut, head, 0.5) for cut in ("3", "6") for head in ("linear", "mlp")}


def test_rows_are_ranked_by_validation_and_have_intervals(outcome: CompareOutcome) -> None:
    rows = outcome.table.rows
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert [row.val for row in rows] == sorted((row.val for row in rows), reverse=True)
    assert rows[0].p_value is None and all(row.p_value is not None for row in rows[1:])
    for row in rows:
        assert row.test.low <= row.test.value <= row.test.high
        assert row.macro_f1.low <= row.macro_f1.value <= row.macro_f1.high
        assert row.images_per_second > 0 and row.bytes > 0
    assert any(row.pareto for row in rows)
    frozen = {row.head: row for row in rows if row.regime == "frozen" and row.cut == "6"}
    assert frozen["linear"].params_trainable == 2 * 32 + 2
    assert frozen["knn"].params_trainable == 0
    assert outcome.table.recommendation.startswith("Take row ")


def test_finished_cells_are_never_computed_again(
    outcome: CompareOutcome,
    trained: Trained,
    runs: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a cell is computed again")

    monkeypatch.setattr(heads_module, "_train", refuse)
    again = compare(
        trained.dataset,
        runs,
        weights,
        refuse_launch,
        regime="frozen,last:1,scratch",
        fractions="0.5,1",
    )
    assert again.computed == 0
    assert again.folder == outcome.folder

    def without_times(table: Any) -> Any:
        return [{**row, "feature_seconds": 0} for row in table.as_dict()["rows"]]

    assert without_times(again.table) == without_times(outcome.table)
    smaller = compare(trained.dataset, runs, weights, refuse_launch, cut="6", head="linear")
    assert smaller.computed == 0


def test_killed_comparison_goes_on_where_it_was(
    trained: Trained, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, calls = heads_module._train, []

    def killed(cell: Any, *rest: Any) -> Any:
        calls.append(cell.id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(cell, *rest)

    monkeypatch.setattr(heads_module, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(trained.dataset, tmp_path, weights, cut="6")
    outcome = compare(trained.dataset, tmp_path, weights, cut="6")
    assert (outcome.cells, outcome.computed) == (4, 2)
    assert len(calls) == 5 and len(set(calls)) == 4


def test_heads_open_no_picture_and_no_shard_of_pixels(
    outcome: CompareOutcome,
    trained: Trained,
    tmp_path: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert outcome.computed, "the features are cached"

    def refuse(*_: Any) -> Any:
        raise AssertionError("pixels are read")

    monkeypatch.setattr(Dataset, "read", refuse)
    monkeypatch.setattr(MappedShard, "__init__", refuse)
    assert compare(trained.dataset, tmp_path, weights, seeds=1).computed == 6


def test_published_row_labels_as_its_head_does(
    outcome: CompareOutcome, trained: Trained, runs: Path, weights: str
) -> None:
    linear = next(
        row for row in outcome.table.rows if row.head == "linear" and row.regime == "frozen"
    )
    for number in (linear.number, next(r.number for r in outcome.table.rows if r.head == "mlp")):
        published = compare(
            trained.dataset,
            runs,
            weights,
            refuse_launch,
            regime="frozen,last:1,scratch",
            fractions="0.5,1",
            publish=str(number),
        )
        version = published.published
        assert version is not None
        row = published.table.rows[number - 1]
        assert version.architecture.cut == row.cut
        assert version.architecture.head == row.head
        predictor = open_model(f"{runs}@{version.id}")
        dataset = open_dataset(trained.dataset)
        features = open_features(trained.dataset, cut=row.cut).read(dataset.index["sample_id"])
        with torch.no_grad():
            logits = predictor.network.classifier(torch.from_numpy(features)).numpy()
        scores = predictor(dataset.read(range(len(features))))
        ratio = np.log(scores[:, 1] / scores[:, 0]) * version.temperature
        expected = logits[:, 1] - logits[:, 0]
        assert np.abs(ratio - expected).max() <= 2e-3 * np.abs(logits).max()
        test = version.metrics["test"]["top1"]
        if len(row.seeds) == 1:
            assert test == pytest.approx(row.test.value)


def test_row_is_published_once(
    outcome: CompareOutcome, trained: Trained, runs: Path, weights: str
) -> None:
    assert outcome.published is not None
    assert (runs / outcome.published.lineage["run"] / "report.html").is_file()
    status = read_status(StatusConfig(path=str(runs)))
    assert status["unfinished"] == []
    best = next(row for row in outcome.table.rows if row.head != "knn")
    assert outcome.published.architecture.cut == best.cut
    rows = [str(best.number)]
    rows += [str(row.number) for row in outcome.table.rows if row.regime == "last:1"]
    for number in rows:
        published = [
            compare(
                trained.dataset,
                runs,
                weights,
                refuse_launch,
                regime="frozen,last:1,scratch",
                fractions="0.5,1",
                publish=number,
            ).published
            for _ in range(2)
        ]
        assert published[0] is not None
        assert published[0] == published[1]


def test_page_and_summary(outcome: CompareOutcome) -> None:
    summary = json.loads(json.dumps(record_comparison(outcome)))
    assert {"rows", "recommendation"} <= summary.keys()
    page = Path(summary["report"]).read_text()
    assert "5 nearest" not in summary["rows"][0]["head"]
    assert all(str(row["cut"]) in page for row in summary["rows"])
    table = from_parquet(Path(summary["table"]).read_bytes())
    assert len(table) == len(summary["rows"]) + len(summary["learning_curve"])


def test_backbone_without_weights_is_compared_from_scratch(
    trained: Trained, tmp_path: Path
) -> None:
    outcome = compare(
        trained.dataset, tmp_path, "imagenet", cut="auto", regime="frozen,scratch", seeds=1
    )
    assert [row.regime for row in outcome.table.rows] == ["scratch"]
    assert "no known weights" in outcome.table.notes[0]
    with pytest.raises(RequestError, match="add the regime scratch"):
        compare(trained.dataset, tmp_path, "imagenet", cut="auto", regime="frozen")


def test_subsets_are_nested_and_have_every_class() -> None:
    targets = np.repeat([0, 1, 2], [3, 40, 100])
    smaller, larger = (set(subset(targets, share, 5).tolist()) for share in (0.1, 0.5))
    assert smaller < larger
    assert {int(targets[row]) for row in smaller} == {0, 1, 2}
    assert len(subset(targets, 1, 5)) == 143


def test_refit_heads_are_rows_of_their_own_and_are_published_so(
    trained: Trained, outcome: CompareOutcome, runs: Path, weights: str
) -> None:
    options: dict[str, Any] = {"cut": "3", "head": "linear", "seeds": 1, "publish": "best"}
    again = compare(trained.dataset, runs, weights, refuse_launch, refit=True, **options)
    assert again.computed == 1, "the neighbours are those of the other comparison"
    (row,) = (row for row in again.table.rows if row.head == "linear")
    assert row.refit and "refit on train and validation" in row.name
    plain = next(row for row in outcome.table.rows if (row.cut, row.head) == ("3", "linear"))
    assert row.val == pytest.approx(plain.val, abs=0.1)
    assert again.published is not None
    metrics = again.published.metrics
    assert metrics["val"]["top1"] == pytest.approx(row.val), "that of the head before the refit"
    assert metrics["test"]["top1"] == pytest.approx(row.test.value)
    assert again.published.lineage["config"]["refit"] is True
