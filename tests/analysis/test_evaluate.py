"""`afinar evaluate`: a model on its own dataset, on one with other classes, and corrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from afinar import open_model
from afinar.analysis.evaluate import EvaluateOutcome, run_evaluation
from afinar.config.evaluate import EvaluateConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import RequestError
from afinar.execution.executor import RayExecutor
from afinar.models.registry.versions import find_model
from afinar.report.evaluation import record_evaluation
from afinar.units.executor import InlineExecutor
from tests.archives import ingest
from tests.conftest import Trained, jpeg, make_archive
from tests.report.html import Reader


def evaluate(trained: Trained, dataset: str = "", **options: Any) -> EvaluateOutcome:
    config = EvaluateConfig(dataset=dataset or trained.dataset, model=trained.champion, **options)
    return run_evaluation(config, InlineExecutor())


def test_metrics_are_those_that_training_recorded(trained: Trained) -> None:
    outcome = evaluate(trained, corruptions="none")
    recorded = find_model(trained.champion).version.metrics["test"]
    assert outcome.metrics["samples"] == recorded["samples"]
    assert outcome.metrics["top1"] == recorded["top1"]
    assert outcome.metrics["recall"] == recorded["recall"]
    assert outcome.metrics["loss"] == pytest.approx(recorded["loss"], rel=1e-3)
    assert outcome.notes == []


def test_predictions_are_those_of_the_model(trained: Trained) -> None:
    outcome = evaluate(trained, corruptions="none", split="all")
    images = open_dataset(trained.dataset).read(outcome.plan.rows)
    scores = open_model(trained.champion)(images)
    np.testing.assert_array_equal(outcome.predicted, scores.argmax(axis=1))
    np.testing.assert_allclose(outcome.scores, scores.max(axis=1), rtol=1e-4)
    assert "trained on this dataset" in outcome.notes[0]


def test_corrupted_pictures_are_compared_with_the_same_plain_ones(trained: Trained) -> None:
    outcome = evaluate(trained, split="all", corruptions="brightness,jpeg", corrupted=30)
    assert [(row.name, row.strength) for row in outcome.corrupted] == [
        (name, strength) for name in ("brightness", "jpeg") for strength in (1, 2, 3)
    ]
    plan = outcome.plan
    assert len(plan.corrupted) == 30
    plain = outcome.hits[plan.corrupted]
    assert outcome.plain.value == plain.mean()

    # The classes differ in colour, so a third of the light must change what this network says.
    from afinar.evaluation.corruptions import corruptions

    images = open_dataset(trained.dataset).read(plan.rows[plan.corrupted])
    darkest = corruptions(("brightness",))[2](images)
    hits = open_model(trained.champion)(darkest).argmax(axis=1) == plan.targets[plan.corrupted]
    assert outcome.corrupted[2].accuracy.value == hits.mean()
    assert outcome.corrupted[2].difference.value == pytest.approx(hits.mean() - plain.mean())


def test_workers_on_ray_give_the_same_result(trained: Trained, local_ray: None) -> None:
    config = EvaluateConfig(dataset=trained.dataset, model=trained.champion, corruptions="jpeg")
    ours = run_evaluation(config, InlineExecutor())
    on_ray = run_evaluation(config, RayExecutor(None))
    np.testing.assert_array_equal(ours.predicted, on_ray.predicted)
    assert ours.corrupted == on_ray.corrupted


@pytest.fixture
def other_dataset(tmp_path: Path) -> str:
    """A dataset that shares the class moss with the model, has slate, and lacks rust."""
    pictures = make_archive(tmp_path / "other", 20, ("moss", "slate"))
    ingest(pictures, tmp_path / "dataset")
    return str(tmp_path / "dataset")


def test_classes_that_the_model_lacks_are_left_out_and_stated(
    trained: Trained, other_dataset: str
) -> None:
    outcome = evaluate(trained, other_dataset, split="all", corruptions="none")
    assert outcome.plan.unknown == {"slate": 20}
    assert outcome.plan.missing == ["rust"]
    assert len(outcome.plan.rows) == 20
    moss = outcome.version.classes.index("moss")
    assert (outcome.plan.targets == moss).all()
    assert any("20 pictures are not evaluated" in note for note in outcome.notes)
    assert any("rust" in note for note in outcome.notes)


def test_requests_that_cannot_be_served_say_why(trained: Trained, tmp_path: Path) -> None:
    pictures = make_archive(tmp_path / "pictures", 6, ("slate", "rust"))
    (pictures / "rust").rename(pictures / "clay")
    ingest(pictures, tmp_path / "other-classes")
    with pytest.raises(RequestError, match="no picture has a class of the model"):
        evaluate(trained, str(tmp_path / "other-classes"), split="all")
    ingest(pictures, tmp_path / "small", size=32)
    with pytest.raises(RequestError, match="--size 64"):
        evaluate(trained, str(tmp_path / "small"))
    with pytest.raises(RequestError, match="choose from blur"):
        evaluate(trained, corruptions="fog")
    ingest(pictures, tmp_path / "unlabelled", labels="none")
    with pytest.raises(RequestError, match="no labelled picture"):
        evaluate(trained, str(tmp_path / "unlabelled"))


def test_page_and_tables_are_written_below_the_dataset(trained: Trained, tmp_path: Path) -> None:
    pictures = make_archive(tmp_path / "pictures", 8)
    (pictures / "moss" / "<b>wrong.jpg").write_bytes(jpeg(77, tint=(170, 80, 50)))
    ingest(pictures, tmp_path / "dataset")
    config = EvaluateConfig(
        dataset=str(tmp_path / "dataset"),
        model=trained.champion,
        split="all",
        corruptions="blur,rotation",
    )
    outcome = run_evaluation(config, InlineExecutor())
    summary = record_evaluation(config, outcome)
    folder = Path(summary["report"]).parent
    assert json.loads((folder / "summary.json").read_text())["top1"] == outcome.accuracy.value
    assert np.array(summary["confusion"]).sum() == 17
    assert len(pq.read_table(summary["predictions"])) == 17

    html = (folder / "report.html").read_text()
    page = Reader(html)
    assert "radius 4 px at 224 px" in page.text
    assert "20°" in page.text
    assert "<b>wrong" not in html
    assert all(address.startswith(("data:", "file:", "#")) for address in page.addresses)
