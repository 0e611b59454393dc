"""Repeats of a training: one is published, and the interval is that of its seeds."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from afinar.evaluation.intervals import half_interval
from afinar.models.registry.versions import find_model
from afinar.training.distributed import Group
from afinar.training.driver import TrainOutcome
from afinar.training.repeats import run_repeats
from afinar.training.task import TrainTask
from afinar.training.worker import run_worker
from tests.conftest import Trained
from tests.training.runs import config


def launch(task: TrainTask) -> None:
    run_worker(task, Group())


def test_best_of_three_seeds_is_published_and_the_others_are_deleted(
    trained: Trained, tmp_path: Path
) -> None:
    published: list[TrainOutcome] = []
    configuration = config(trained, tmp_path, epochs=1, seed=5, repeats=3, select_by="loss")
    outcome, repeats = run_repeats(configuration, launch, published.append)

    assert [repeat.seed for repeat in repeats.seeds] == [5, 6, 7]
    losses = {repeat.seed: repeat.loss for repeat in repeats.seeds}
    assert len(set(losses.values())) == 3
    assert repeats.published_seed == min(losses, key=losses.__getitem__)
    assert published == [outcome]
    version = find_model(f"{tmp_path}@1").version
    assert version.lineage["config"]["seed"] == repeats.published_seed
    assert "top1" in version.metrics["test"]

    accuracies = [repeat.top1 for repeat in repeats.seeds]
    assert repeats.mean == pytest.approx(statistics.fmean(accuracies))
    assert repeats.low is not None
    assert repeats.low <= repeats.mean
    left = {path.parent.name for path in (tmp_path / "runs").rglob("*.json*")}
    assert left == {Path(outcome.run).name}
    assert not list((tmp_path / "unfinished").iterdir())


def test_interval_is_that_of_student() -> None:
    """Three values with the standard deviation 1: 4.303 / sqrt(3)."""
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(2.4843, abs=1e-4)
    assert half_interval([1.0]) is None
