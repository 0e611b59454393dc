"""Trainings as tests run them, without Ray: in this process, or in worker processes that talk through gloo."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from afinar.config.train import TrainConfig
from afinar.training.distributed import Group
from afinar.training.publish import TrainOutcome, read_outcome
from afinar.training.task import plan_training
from afinar.training.worker import train
from torch.multiprocessing.spawn import start_processes

from tests.conftest import Trained
from tests.servers import free_port


def config(trained: Trained, models: Path, **options: Any) -> TrainConfig:
    """A small network from scratch on the session's dataset: seconds on one core."""
    values: dict[str, Any] = {
        "backbone": "small_cnn", "regime": "scratch", "weights": "none", "input_size": 64, "epochs": 3, "batch_size": 8,
    }  # fmt: skip
    return TrainConfig(**{"dataset": trained.dataset, "models": str(models), **values, **options})


def run(configuration: TrainConfig) -> TrainOutcome:
    """Train in this process, as one worker."""
    return train(plan_training(configuration, "run"), Group())


def _worker(rank: int, size: int, port: int, configuration: TrainConfig) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
    )
    train(plan_training(configuration, "run"), Group())
    dist.destroy_process_group()


def run_on(workers: int, configuration: TrainConfig, target: Path) -> TrainOutcome:
    """Train as that many worker processes, into `target`."""
    configuration = dataclasses.replace(configuration, models=str(target))
    spawn: Callable[..., Any] = start_processes
    spawn(_worker, args=(workers, free_port(), configuration), nprocs=workers, start_method="spawn")
    outcome = read_outcome(plan_training(configuration, "run"))
    assert outcome is not None
    return outcome


def audited(folder: Path) -> list[dict[str, Any]]:
    """What all workers wrote into an audit folder: one record per worker and step, in the order of steps."""
    lines = [
        line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    return sorted(map(json.loads, lines), key=lambda one: (one["step"], one["rank"]))


def steps_of(folder: Path) -> dict[int, list[int]]:
    """Step → the rows of all workers' shares of it, sorted; of a step that was replayed, once for each time."""
    steps: dict[int, list[int]] = {}
    for record in audited(folder):
        steps.setdefault(record["step"], []).extend(record["rows"])
    return {step: sorted(rows) for step, rows in steps.items()}


def wait_for_step(folder: Path, step: int, workers: int, timeout_s: float = 120) -> dict[int, int]:
    """Wait until all `workers` of an audited training have taken `step`; rank → process id."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = {}
        for path in folder.glob("*.jsonl"):
            lines = path.read_text().splitlines()
            if lines and json.loads(lines[-1])["step"] >= step:
                _, rank, process = path.stem.rsplit("-", maxsplit=2)
                found[int(rank)] = int(process)
        if len(found) == workers:
            return found
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached in {timeout_s:.0f} s")
