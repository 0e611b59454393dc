"""Trainings of comparisons: which are stopped early, run at once, kept, dropped, published."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar.comparison import trainings as trainings_module
from afinar.comparison.trainings import RowKey, rungs, survivors
from afinar.config.status import StatusConfig
from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.execution.choice import ONE_TRAINING, TrainingRoom, choose_training_room
from afinar.report.status import read_status
from afinar.storage.open import open_store
from afinar.training.driver import run_training
from afinar.training.task import TrainTask
from afinar.training.unfinished import collect_models, unpublished_runs
from tests.comparison.runs import compare, launch, refuse_launch
from tests.conftest import Trained
from tests.features.jobs import put_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return put_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


def test_rungs_are_a_quarter_and_half_of_the_epochs() -> None:
    assert rungs(10) == [3, 5]
    assert rungs(4) == [1, 2]
    assert rungs(3) == []


def test_rows_within_the_noise_go_on() -> None:
    top1: dict[RowKey, float] = {("a",): 0.9, ("b",): 0.89, ("c",): 0.88, ("d",): 0.6}
    assert survivors(top1, 300) == [("a",), ("b",), ("c",)]
    assert survivors(top1, 10) == [("a",), ("b",), ("c",), ("d",)]
    assert survivors({("a",): 0.9, ("b",): 0.5}, 300) == [("a",)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(2, 10_000))
def test_half_of_the_rows_go_on_and_the_best_is_one_of_them(
    accuracies: list[float], samples: int
) -> None:
    top1: dict[RowKey, float] = {(number,): value for number, value in enumerate(accuracies)}
    kept = survivors(top1, samples)
    assert len(kept) >= len(top1) / 2
    assert top1[kept[0]] == max(accuracies)
    lost = [top1[row] for row in top1 if row not in kept]
    assert all(value <= min(top1[row] for row in kept) for value in lost)


def test_room_is_one_gpu_or_four_cores_for_each_training() -> None:
    assert choose_training_room(workers=0, cores=16, gpus=4) == TrainingRoom(4, 1, 1)
    assert choose_training_room(workers=2, cores=16, gpus=4) == TrainingRoom(2, 2, 1)
    assert choose_training_room(workers=0, cores=18, gpus=0) == TrainingRoom(4, 1, 4)
    assert choose_training_room(workers=0, cores=6, gpus=0) == ONE_TRAINING


def without_scratch(top1: Mapping[RowKey, float], samples: int) -> list[RowKey]:
    """Stop the trainings from scratch, however good they are."""
    return [row for row in top1 if "scratch" not in row]


def test_hopeless_training_is_stopped_and_not_trained_again(
    trained: Trained, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "cut": "6",
        "regime": "last:1,scratch",
        "seeds": 1,
        "epochs": 4,
    }
    monkeypatch.setattr(trainings_module, "survivors", without_scratch)
    outcome = compare(trained.dataset, tmp_path, weights, **options)
    rows = {row.regime: row for row in outcome.table.rows}
    assert rows["scratch"].stopped == "after 1 of 4 epochs"
    assert rows["last:1"].stopped == ""
    assert outcome.computed == 2
    assert max(row["epoch"] for row in outcome.histories[rows["last:1"].name]) == 4
    runs = {info.name.split("/")[1] for info in open_store(str(tmp_path)).walk("runs")}
    assert len(runs) == 1, "the stopped run is deleted"
    transfer = outcome.table.transfer
    assert transfer is not None and "stopped after 1 of 4 epochs" in transfer.sentence

    again = compare(trained.dataset, tmp_path, weights, refuse_launch, **options)
    assert again.computed == 0
    assert again.table == outcome.table
    with pytest.raises(RequestError, match="--keep-all"):
        number = str(rows["scratch"].number)
        compare(trained.dataset, tmp_path, weights, refuse_launch, publish=number, **options)

    whole = compare(trained.dataset, tmp_path, weights, keep_all=True, **options)
    rows = {row.regime: row for row in whole.table.rows}
    assert rows["scratch"].stopped == ""
    assert whole.computed == 1


def test_comparison_that_was_killed_at_a_rung_goes_on_from_its_epoch(
    trained: Trained, tmp_path: Path, weights: str
) -> None:
    options: dict[str, Any] = {"cut": "6", "regime": "last:1,full", "seeds": 1, "epochs": 4}
    launches: list[tuple[str, int | None]] = []

    def killed(task: TrainTask) -> None:
        launches.append((task.config.regime, task.last_epoch))
        if len(launches) == 3:
            raise KeyboardInterrupt
        launch(task)

    with pytest.raises(KeyboardInterrupt):
        compare(trained.dataset, tmp_path, weights, killed, **options)
    first = launches.copy()
    assert first == [("last:1", 1), ("full", 1), ("last:1", 2)]
    compare(trained.dataset, tmp_path, weights, killed, **options)
    assert launches[3:] == [("last:1", 2), ("full", 2), ("last:1", None), ("full", None)]


def test_trainings_run_at_the_same_time_where_there_is_room(
    trained: Trained, tmp_path: Path, weights: str
) -> None:
    both, turn = threading.Barrier(2), threading.Lock()
    configs = []

    @contextlib.contextmanager
    def open_room() -> Iterator[TrainingRoom]:
        yield TrainingRoom(2, 1, 1)

    def together(task: TrainTask) -> None:
        both.wait(timeout=60)
        with turn:  # torch has one seed for all threads
            configs.append(task.config)
            launch(task)

    outcome = compare(
        trained.dataset,
        tmp_path,
        weights,
        together,
        cut="6",
        regime="full,scratch",
        open_room=open_room,
    )
    assert outcome.computed == len(configs) == 4
    assert all((config.workers, config.cores_per_worker) == (1, 1) for config in configs)


def test_complete_runs_are_kept_until_they_are_dropped_or_published(
    trained: Trained, tmp_path: Path, weights: str
) -> None:
    options: dict[str, Any] = {"cut": "6", "regime": "full", "seeds": 1}
    outcome = compare(trained.dataset, tmp_path, weights, **options)
    store = open_store(str(tmp_path))
    status = read_status(StatusConfig(path=str(tmp_path)))
    assert (status["unfinished"], status["unpublished"]) == ([], 1)
    (run,) = unpublished_runs(store).values()
    assert collect_models(store, drop_runs=False).objects == []
    assert store.get(run.weights)

    # A training with the same options publishes the run, and trains nothing.
    config = TrainConfig(
        dataset=trained.dataset,
        models=str(tmp_path),
        backbone="small_cnn",
        weights=weights,
        cut="6",
        input_size=64,
        regime="full",
        epochs=1,
        batch_size=8,
    )
    published = run_training(config, refuse_launch)
    assert published.run == f"runs/{run.run}"
    assert unpublished_runs(store) == {}
    again = compare(trained.dataset, tmp_path, weights, refuse_launch, publish="best", **options)
    assert again.published == published.version
    assert again.table == outcome.table


def test_dropped_run_is_trained_again_to_be_published(
    trained: Trained, tmp_path: Path, weights: str
) -> None:
    options: dict[str, Any] = {"cut": "6", "regime": "full", "seeds": 1}
    compare(trained.dataset, tmp_path, weights, **options)
    store = open_store(str(tmp_path))
    (run,) = unpublished_runs(store).values()
    assert collect_models(store, drop_runs=True).runs == [run.run]
    assert unpublished_runs(store) == {}
    assert list(store.walk(f"runs/{run.run}")) == []
    outcome = compare(trained.dataset, tmp_path, weights, publish="best", **options)
    assert outcome.computed == 0
    assert outcome.published is not None
