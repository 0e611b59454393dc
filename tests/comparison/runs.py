"""Comparisons in this process, with a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afinar.comparison.driver import CompareOutcome, run_compare
from afinar.config.compare import CompareConfig
from afinar.report.training import write_training_page
from afinar.training.distributed import Group
from afinar.training.task import TrainTask
from afinar.training.worker import run_worker
from afinar.units.executor import InlineExecutor


def launch(task: TrainTask) -> None:
    run_worker(task, Group())


def refuse_launch(task: TrainTask) -> None:
    raise AssertionError(f"run {task.run} is trained again")


def compare_all(
    datasets: str, runs: Path, weights: str, launcher: Any = launch, **options: Any
) -> list[CompareOutcome]:
    """Compare two convolutions of a small network on datasets, with two seeds."""
    values: dict[str, Any] = {
        "backbone": "small_cnn",
        "cut": "3,6",
        "input_size": 64,
        "seeds": 2,
        "epochs": 1,
        "batch_size": 8,
        **options,
    }
    rooms = {"open_room": values.pop("open_room")} if "open_room" in values else {}
    config = CompareConfig(dataset=datasets, runs=str(runs), weights=weights, **values)
    return run_compare(
        config, InlineExecutor(), launcher, on_published=write_training_page, **rooms
    )


def compare(
    dataset: str, runs: Path, weights: str, launcher: Any = launch, **options: Any
) -> CompareOutcome:
    """Compare on one dataset."""
    (outcome,) = compare_all(dataset, runs, weights, launcher, **options)
    return outcome
