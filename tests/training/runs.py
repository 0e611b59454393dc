"""Trainings without Ray: in this process, or in worker processes that communicate through gloo."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from afinar.config.train import TrainConfig
from afinar.training.checkpoint import TrainState
from afinar.training.distributed import Group
from afinar.training.publish import TrainResult, read_result
from afinar.training.sample_log import SampleLog
from afinar.training.sampler import RowNumbers
from afinar.training.task import plan_training
from afinar.training.worker import train
from tests.conftest import Trained
from tests.gloo import run_in_group


def config(trained: Trained, models: Path, **options: Any) -> TrainConfig:
    """Return a small network from scratch on the session's dataset: seconds on one core."""
    values: dict[str, Any] = {
        "backbone": "small_cnn",
        "regime": "scratch",
        "weights": "none",
        "input_size": 64,
        "epochs": 3,
        "batch_size": 8,
    }
    return TrainConfig(**{"dataset": trained.dataset, "models": str(models), **values, **options})


def run(configuration: TrainConfig) -> TrainResult:
    """Train in this process, as one worker."""
    return train(plan_training(configuration, "run"), Group())


def _train(rank: int, configuration: TrainConfig) -> None:
    del rank
    train(plan_training(configuration, "run"), Group())


def run_on(workers: int, configuration: TrainConfig, models: Path) -> TrainResult:
    """Train in that many worker processes, into `models`."""
    configuration = dataclasses.replace(configuration, models=str(models))
    run_in_group(workers, _train, configuration)
    result = read_result(plan_training(configuration, "run"))
    assert result is not None
    return result


class InterruptionError(Exception):
    """Stands for the death of a machine."""


def interrupt_after(step: int, configuration: TrainConfig, patch: pytest.MonkeyPatch) -> None:
    """Train until `step` is done, and no further."""
    write = SampleLog.write

    def write_and_interrupt(self: SampleLog, state: TrainState, rows: RowNumbers) -> None:
        write(self, state, rows)
        if state.step == step:
            raise InterruptionError

    with patch.context() as context:
        context.setattr(SampleLog, "write", write_and_interrupt)
        with pytest.raises(InterruptionError):
            run(configuration)


def read_sample_logs(folder: Path) -> list[dict[str, Any]]:
    """Return the records of all workers in an --audit folder, one per worker and step, by step."""
    paths = sorted(folder.glob("*.jsonl"))
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return sorted(records, key=lambda record: (record["step"], record["rank"]))


def rows_by_step(folder: Path) -> dict[int, list[int]]:
    """Return the sorted rows of each step over all workers; rows of a repeated step occur twice."""
    steps: dict[int, list[int]] = {}
    for record in read_sample_logs(folder):
        steps.setdefault(record["step"], []).extend(record["rows"])
    return {step: sorted(rows) for step, rows in steps.items()}


def wait_for_step(folder: Path, step: int, workers: int, timeout_s: float = 120) -> dict[int, int]:
    """Wait until all `workers` of a training have logged `step`. Return process ids by rank."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        processes = {}
        for path in folder.glob("*.jsonl"):
            lines = path.read_text().splitlines()
            if lines and json.loads(lines[-1])["step"] >= step:
                _, rank, process = path.stem.rsplit("-", maxsplit=2)
                processes[int(rank)] = int(process)
        if len(processes) == workers:
            return processes
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached in {timeout_s:.0f} s")
