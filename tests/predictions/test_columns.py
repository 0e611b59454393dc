"""Optional columns, and the names of partitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import torch

from afinar import open_model, open_predictions
from afinar.config.label import LabelConfig
from afinar.errors import RequestError
from afinar.predictions.columns import UNNAMED_TOP_K, OptionalColumns, best_classes, partition_name
from afinar.predictions.schema import PREDICTIONS
from afinar.storage.open import open_store
from tests.archives import label
from tests.conftest import Trained
from tests.predictions.folders import BELOW, COUNT, current_partition, names_in


def name(**options: Any) -> str:
    config = LabelConfig(source="s", predictions="p", model="m@1", **options)
    return partition_name("3-0a1b2c3d", config)


def test_options_that_change_a_row_are_in_the_partitions_name() -> None:
    assert name() == name(single=True, batch_size=4) == "3-0a1b2c3d"
    assert name(top_k=3) == "3-0a1b2c3d-top3"
    assert (
        name(top_k=3, scores=True, features=True, abstain_below=0.7)
        == "3-0a1b2c3d-top3-scores-features-abstain0.7"
    )
    assert name(abstain_below=0.1234567) != name(abstain_below=0.1234568)


def test_published_names_keep_their_meaning_whatever_the_default_is() -> None:
    assert UNNAMED_TOP_K == 5, "a name without top… has always meant five classes per row"
    assert name(top_k=5) == "3-0a1b2c3d"
    assert name(top_k=6) == "3-0a1b2c3d-top6"


def test_score_is_not_a_number_the_row_abstains() -> None:
    scores = np.array([[0.2, 0.8], [np.nan, np.nan], [0.4, 0.6]], dtype=np.float32)
    (abstained,) = OptionalColumns(abstain_below=0.8).arrays(scores, None)
    assert abstained.to_pylist() == [False, True, True], "0.8 is not below 0.8"


@pytest.mark.parametrize("classes", [3, 200])
def test_best_classes_are_those_of_a_stable_sort(classes: int) -> None:
    """Also with equal scores, of which the class with the lower number is better, and with NaN."""
    rng = np.random.default_rng(0)
    distinct = rng.random((50, classes), dtype=np.float32)
    tied = rng.integers(0, 4, (50, classes)).astype(np.float32)
    not_numbers = np.where(rng.random((50, classes)) < 0.99, distinct, np.nan).astype(np.float32)
    for scores in (distinct, tied, not_numbers):
        for top_k in (1, 2, 3):
            expected = [np.argsort(-row, kind="stable")[:top_k] for row in scores]
            np.testing.assert_array_equal(best_classes(scores, top_k), expected)


def test_scores_are_requested_they_are_in_the_order_of_the_classes(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained, scores=True, precision="float32")
    partition_name, partition = current_partition(out)
    assert partition_name.endswith("-float32-scores")
    assert partition.classes == ["moss", "rust"]
    rows = open_predictions(out).table.to_pylist()
    assert len(rows) == COUNT
    expected = open_model(trained.champion).predict([row["uri"] for row in rows])
    for row, alone in zip(rows, expected, strict=True):
        scores = dict(zip(partition.classes, row["scores"], strict=True))
        assert scores == pytest.approx(alone, abs=1e-5)
        assert max(row["scores"]) == row["score"]


def test_features_are_requested_they_are_the_input_of_the_classifier(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained, features=True, top_k=2, precision="float32")
    partition_name, partition = current_partition(out)
    assert partition_name.endswith("-top2-float32-features")
    assert partition.classes is None
    table = open_predictions(out).table
    assert table.schema.field("features").type == pa.list_(pa.float32())

    model = open_model(trained.champion)
    with torch.inference_mode():
        activations = torch.tensor(table.column("features").to_pylist())
        scores = (model.network.classifier(activations) / model.version.temperature).softmax(dim=1)
    best = scores.max(dim=1).values.numpy()
    assert best == pytest.approx(table.column("score").to_numpy(), abs=1e-5)
    assert scores.std() > 0.1, "the pictures differ"


def test_folder_is_read_without_the_manifest_every_picture_is_there_once(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained, scores=True, features=True, abstain_below=BELOW, single=True)
    partition_name, _ = current_partition(out)
    rows = duckdb.execute(f"""
        SELECT model, count(*), count(DISTINCT uri), min(len(scores)), min(len(features)),
               count(*) FILTER (abstained)
        FROM read_parquet('{out}/parts/*/*.parquet', hive_partitioning = true) GROUP BY model
    """).fetchall()
    frame = pd.read_parquet(f"{out}/parts")
    uncertain = int((frame["score"] < BELOW).sum())
    width = len(frame["features"][0])
    assert 0 < uncertain < COUNT
    assert rows == [(partition_name, COUNT, COUNT, 2, width, uncertain)]
    assert set(frame["model"].astype(str)) == {partition_name}
    assert sorted(frame["uri"]) == [str(scans / f"{number:03d}.jpg") for number in range(COUNT)]
    assert (frame["abstained"] == (frame["score"] < BELOW)).all()
    assert pads.dataset(f"{out}/parts", partitioning="hive").count_rows() == COUNT


def test_nothing_is_requested_rows_have_no_optional_columns(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    summary = label(scans, out, trained)
    assert open_predictions(out).table.schema.equals(PREDICTIONS)
    assert current_partition(out).name == summary.model.split("@")[1]
    assert (summary.single, summary.review, summary.abstained) == ("", "", 0)
    assert names_in(open_store(out), "review") == names_in(open_store(out), "single") == []


def test_one_picture_is_printed_options_for_a_folder_are_refused() -> None:
    def make_config(**options: Any) -> LabelConfig:
        return LabelConfig(**{"source": "a.jpg", "predictions": "-", "model": "m@1", **options})

    for options in ({"scores": True}, {"features": True}, {"abstain_below": 0.5}, {"single": True}):
        with pytest.raises(RequestError, match="name PREDICTIONS"):
            make_config(**options)
        make_config(**options, predictions="out")
