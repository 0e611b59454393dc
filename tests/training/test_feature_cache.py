"""Frozen trainings use the features of the dataset's cache, and fill it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afinar import open_dataset, open_model
from afinar.dataset.reader import Dataset
from afinar.dataset.shards import MappedShard
from afinar.features.manifest import feature_keys
from afinar.features.reader import list_all, open_features
from afinar.training import feature_cache as cache_module
from afinar.training.distributed import Group
from afinar.training.driver import run_training, run_trial
from afinar.training.task import TrainTask
from afinar.training.worker import run_worker
from tests.archives import ingest
from tests.conftest import Trained, jpeg
from tests.features.jobs import compute, put_weights
from tests.training.runs import config, run, run_on


def launch(task: TrainTask) -> None:
    run_worker(task, Group())


@pytest.fixture
def own(trained: Trained, tmp_path: Path) -> Trained:
    """Return a copy of the session's dataset, which has no features yet."""
    dataset = tmp_path / "dataset"
    shutil.copytree(trained.dataset, dataset, ignore=shutil.ignore_patterns("features"))
    return replace(trained, dataset=str(dataset))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return put_weights(tmp_path / "small.safetensors")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the shards of pixels that are opened, and the pictures that are read."""
    opened: list[str] = []
    read, make = Dataset.read, MappedShard.__init__

    def recording_read(self: Dataset, rows: Any) -> Any:
        opened.extend("picture" for _ in rows)
        return read(self, rows)

    def recording_init(self: MappedShard, *arguments: Any) -> None:
        opened.append("shard")
        make(self, *arguments)

    monkeypatch.setattr(Dataset, "read", recording_read)
    monkeypatch.setattr(MappedShard, "__init__", recording_init)
    yield opened


def frozen(own: Trained, models: Path, weights: str, **options: Any) -> Any:
    values = {"regime": "frozen", "weights": weights, "epochs": "auto", **options}
    return config(own, models, **values)


def test_second_head_opens_no_picture_and_no_shard(
    own: Trained, tmp_path: Path, weights: str, reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_trial(frozen(own, tmp_path / "a", weights), launch)
    assert reads.count("picture") == 80
    lines = [line for line in capsys.readouterr().err.splitlines() if "features:" in line]
    assert len(lines) == 1 and "80 of 80 pictures computed and kept in the cache" in lines[0]

    reads.clear()
    again = run_trial(frozen(own, tmp_path / "b", weights), launch)
    mlp = run_trial(frozen(own, tmp_path / "c", weights, head="mlp", epochs=2), launch)
    assert reads == []
    assert "all 80 pictures from the cache" in capsys.readouterr().err
    assert again.result.metrics == first.result.metrics, "filling and reading give the same"
    assert mlp.result.metrics["val"]["samples"] == first.result.metrics["val"]["samples"]


def test_only_the_golden_samples_are_read_to_publish(
    own: Trained, tmp_path: Path, weights: str, reads: list[str]
) -> None:
    compute(own.dataset, weights, cut="auto")
    reads.clear()
    outcome = run_training(frozen(own, tmp_path / "models", weights), launch)
    assert reads.count("picture") == min(32, outcome.result.metrics["test"]["samples"])


def test_job_and_training_have_the_same_key(own: Trained, tmp_path: Path, weights: str) -> None:
    compute(own.dataset, weights, cut="auto,6")
    run(frozen(own, tmp_path / "models", weights))
    assert len(feature_keys(own.dataset)) == 2


def test_published_model_is_the_head_on_the_features(
    own: Trained, tmp_path: Path, weights: str
) -> None:
    """Logits of the bundle equal head(standardise(backbone(x))): the scaling is folded in."""
    outcome = run_training(frozen(own, tmp_path / "models", weights, cut="6"), launch)
    predictor = open_model(outcome.models)
    ids = open_dataset(own.dataset).index.column("sample_id")
    features = open_features(own.dataset, cut="6").read(ids)
    images = open_dataset(own.dataset).read(range(len(ids)))
    classifier = predictor.network.classifier
    with torch.no_grad():
        logits = classifier(torch.from_numpy(features)).numpy() / predictor.version.temperature
    scores = predictor(images)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert (scores.argmax(axis=1) == logits.argmax(axis=1)).mean() >= 0.999
    np.testing.assert_allclose(
        np.log(scores[:, 1] / scores[:, 0]),
        np.log(expected[:, 1] / expected[:, 0]),
        atol=1e-3 * np.abs(logits).max() * 2,
    )


def test_only_new_pictures_are_computed(
    own: Trained, tmp_path: Path, weights: str, reads: list[str]
) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(own.pictures, pictures)
    dataset = str(tmp_path / "fresh")
    ingest(pictures, dataset)
    fresh = replace(own, dataset=dataset)
    run_trial(frozen(fresh, tmp_path / "a", weights), launch)
    (pictures / "moss" / "new.jpg").write_bytes(jpeg(4711))
    ingest(pictures, dataset)
    reads.clear()
    run_trial(frozen(fresh, tmp_path / "b", weights), launch)
    assert reads.count("picture") == 1
    assert len(list_all(dataset)[0].sample_ids) == 81


def test_dataset_that_cannot_be_written_is_no_error(
    own: Trained,
    tmp_path: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from afinar.errors import ForbiddenError

    def refuse(*_: Any) -> None:
        raise ForbiddenError("the dataset is somebody else's")

    reference = run(frozen(own, tmp_path / "a", weights)).metrics
    shutil.rmtree(Path(own.dataset) / "features")
    monkeypatch.setattr(cache_module, "keep_features", refuse)
    assert run(frozen(own, tmp_path / "b", weights)).metrics == reference
    assert "not kept in the cache: the dataset is somebody else's" in capsys.readouterr().err


def test_training_on_pictures_has_only_its_solved_head_from_the_cache(
    own: Trained, tmp_path: Path, weights: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(frozen(own, tmp_path / "models", weights, augment="flip", epochs=1))
    assert len(feature_keys(own.dataset)) == 1
    run(frozen(own, tmp_path / "others", weights, regime="full", augment="flip", epochs=1))
    assert len(feature_keys(own.dataset)) == 1
    assert "all 69 pictures from the cache" in caplog.text


def test_two_workers_fill_and_read_what_one_does(
    own: Trained, tmp_path: Path, weights: str
) -> None:
    one = run(frozen(own, tmp_path / "a", weights))
    features = Path(own.dataset) / "features"
    shutil.rmtree(features)
    filled = run_on(2, frozen(own, tmp_path, weights), tmp_path / "b")
    assert list_all(own.dataset)[0].manifest.rows == 80
    read = run_on(2, frozen(own, tmp_path, weights), tmp_path / "c")
    for result in (filled, read):
        assert result.metrics["val"]["top1"] == one.metrics["val"]["top1"]
        assert result.metrics["val"]["loss"] == pytest.approx(one.metrics["val"]["loss"], rel=1e-3)


def test_views_are_computed_once_and_the_head_is_solved_on_them(
    own: Trained, tmp_path: Path, weights: str, reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"augment": "flip,brightness:0.4", "views": 2}
    first = run_trial(frozen(own, tmp_path / "a", weights, **options), launch)
    train = 80 - first.result.metrics["val"]["samples"] - len(_test_rows(own))
    assert reads.count("picture") == 80 + 2 * train
    text = " ".join(capsys.readouterr().err.split())
    assert f"2 augmented views (flip,brightness:0.4) of each of {train} training pictures" in text
    assert [row["epoch"] for row in first.result.history] == [0], "no epoch follows"

    reads.clear()
    again = run_trial(frozen(own, tmp_path / "b", weights, **options), launch)
    mlp = run_trial(frozen(own, tmp_path / "c", weights, head="mlp", epochs=3, **options), launch)
    assert reads == []
    assert again.result.metrics == first.result.metrics
    assert len(mlp.result.history) == 3
    assert "epoch e uses view e modulo 2" in " ".join(capsys.readouterr().err.split())
    assert len(feature_keys(own.dataset)) == 3
    assert len(list_all(own.dataset)) == 1, "views are no features of the pictures as they are"

    other = run_trial(frozen(own, tmp_path / "d", weights, seed=1, **options), launch)
    assert reads.count("picture") == 2 * train, "another seed has other views"
    assert other.result.metrics["val"]["samples"] == again.result.metrics["val"]["samples"]


def _test_rows(own: Trained) -> list[int]:
    splits = open_dataset(own.dataset).index.column("split").to_pylist()
    return [row for row, split in enumerate(splits) if split == "test"]


def test_epochs_on_views_are_those_of_the_network_with_the_same_augmentation(
    own: Trained, tmp_path: Path, weights: str
) -> None:
    options: dict[str, Any] = {"augment": "flip,brightness:0.4", "head": "mlp", "epochs": 2}
    anew = run_trial(frozen(own, tmp_path / "a", weights, dropout=0.0, **options), launch)
    views = run_trial(frozen(own, tmp_path / "b", weights, dropout=0.0, views=2, **options), launch)
    for first, second in zip(anew.result.history, views.result.history, strict=True):
        assert second["train"]["loss"] == pytest.approx(first["train"]["loss"], rel=2e-3)
        assert second["val"]["loss"] == pytest.approx(first["val"]["loss"], rel=2e-3)


def test_refit_head_is_published_and_validated_before_the_refit(
    own: Trained, tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run_training(frozen(own, tmp_path / "a", weights, cut="3"), launch)
    again = run_training(frozen(own, tmp_path / "b", weights, cut="3", refit=True), launch)
    assert "head refit on " in capsys.readouterr().err
    assert again.result.weights != plain.result.weights
    assert again.version.metrics["val"]["samples"] == plain.version.metrics["val"]["samples"]
    assert again.version.lineage["config"]["refit"] is True
    predictor = open_model(again.models)
    classes = open_dataset(own.dataset).classes
    rows = _test_rows(own)
    labels = open_dataset(own.dataset).index.column("label").take(rows).to_pylist()
    predicted = predictor(open_dataset(own.dataset).read(rows)).argmax(axis=1)
    top1 = np.mean(
        [classes[number] == label for number, label in zip(predicted, labels, strict=True)]
    )
    assert top1 == pytest.approx(again.version.metrics["test"]["top1"])
