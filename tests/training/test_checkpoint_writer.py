"""Checkpoints: written in a thread, by time, at a notice of preemption, and only what trains."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from afinar.errors import IntegrityError, NoSpaceError
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.training.checkpoint import Checkpoints, TrainState
from afinar.training.checkpoint_writer import CheckpointSchedule, CheckpointWriter
from afinar.training.distributed import Group
from afinar.training.hooks import Metrics, TrainHooks
from afinar.training.task import plan_training
from afinar.training.worker import train
from tests.conftest import Trained
from tests.training.runs import config, interrupt_after


class SlowCheckpoints(Checkpoints):
    """Checkpoints whose writes last until they are released, and fail if `error` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(open_store(str(folder)), "run", "f" * 64)
        self.released = threading.Event()
        self.error: Exception | None = None

    def put(self, tensors: dict[str, torch.Tensor]) -> ObjectRef:
        assert self.released.wait(60)
        if self.error is not None:
            raise self.error
        return super().put(tensors)


def test_checkpoint_holds_the_tensors_of_its_step_though_training_goes_on(tmp_path: Path) -> None:
    checkpoints = SlowCheckpoints(tmp_path)
    weights, state = {"weight": torch.zeros(3)}, TrainState(step=1, batch=1)
    with CheckpointWriter(checkpoints) as writer:
        writer.save(state, weights, {"momentum": torch.zeros(1)}, "")
        weights["weight"] += 1
        state.step = 2
        checkpoints.released.set()
    checkpoint = checkpoints.newest()
    assert checkpoint is not None
    assert checkpoint.state.step == 1
    assert checkpoint.weights["weight"].tolist() == [0, 0, 0]


def test_error_of_the_thread_is_raised_by_the_next_checkpoint(tmp_path: Path) -> None:
    checkpoints = SlowCheckpoints(tmp_path)
    checkpoints.error = NoSpaceError("full")
    checkpoints.released.set()
    with pytest.raises(NoSpaceError), CheckpointWriter(checkpoints) as writer:
        writer.save(TrainState(step=1, batch=1), {}, {}, "")
        writer.save(TrainState(step=2, batch=2), {}, {}, "")
        pytest.fail("the second save raises")


def test_error_of_the_last_checkpoint_is_raised_at_the_end(tmp_path: Path) -> None:
    checkpoints = SlowCheckpoints(tmp_path)
    checkpoints.error = NoSpaceError("full")
    checkpoints.released.set()
    with pytest.raises(NoSpaceError), CheckpointWriter(checkpoints) as writer:
        writer.save(TrainState(step=1, batch=1), {}, {}, "")


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_checkpoint_is_due_after_its_minutes_and_once_at_a_notice() -> None:
    clock = Clock()
    schedule = CheckpointSchedule(10, clock)
    clock.now = 599.0
    assert not schedule.is_due(is_preempted=False)
    clock.now = 600.0
    assert schedule.is_due(is_preempted=False)
    schedule.saved()
    assert [schedule.is_due(is_preempted=True) for _ in range(2)] == [True, False]
    clock.now = 1e9
    assert not CheckpointSchedule(0, clock).is_due(is_preempted=False)


@pytest.mark.parametrize(("step_s", "steps"), [(0.01, 20), (1.0, 5), (60.0, 1)])
def test_workers_agree_every_five_seconds_and_at_least_every_twenty_steps(
    step_s: float, steps: int
) -> None:
    clock = Clock()
    schedule = CheckpointSchedule(10, clock)
    assert schedule.steps_ahead(1) == 1
    clock.now = step_s
    assert schedule.steps_ahead(2) == steps


def saved_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the step of every checkpoint."""
    steps: list[int] = []
    save = CheckpointWriter.save

    def note_and_save(self: CheckpointWriter, state: TrainState, *more: Any) -> None:
        steps.append(state.step)
        save(self, state, *more)

    monkeypatch.setattr(CheckpointWriter, "save", note_and_save)
    return steps


def test_notice_of_preemption_makes_one_checkpoint_at_once(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = saved_steps(monkeypatch)
    hooks = TrainHooks(is_preempted=lambda: True)
    task = plan_training(config(trained, tmp_path, epochs=1), "run")
    result = train(task, Group(), hooks)
    last = result.history[-1]["ledger"]["steps"]
    assert steps == [1, last]


def test_hook_that_asks_to_stop_ends_the_training_after_its_epoch(
    trained: Trained, tmp_path: Path
) -> None:
    reports: list[Metrics] = []

    def stop_after_two(metrics: Metrics) -> bool:
        reports.append(metrics)
        return metrics["epoch"] == 2

    task = plan_training(config(trained, tmp_path, epochs=4), "run")
    result = train(task, Group(), TrainHooks(on_epoch_end=stop_after_two))
    assert result.epochs == 2
    assert [row["val"]["loss"] for row in result.history] == [row["val_loss"] for row in reports]
    assert "test" in result.metrics


def frozen_body(trained: Trained, models: Path) -> Any:
    return config(
        trained,
        models,
        backbone="efficientnet_lite0",
        regime="last:1",
        weights="package",
        epochs=1,
        ema=0.5,
        checkpoint_steps=2,
    )


def test_checkpoint_holds_only_what_trains_and_needs_the_same_frozen_layers(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = frozen_body(trained, tmp_path)
    interrupt_after(3, configuration, monkeypatch)
    files = list((tmp_path / "runs" / "run" / "checkpoints").glob("*.safetensors"))
    names = {name for file in files for name in safetensors.torch.load_file(file)}
    assert any("classifier." in name for name in names)
    assert not any("features.0." in name for name in names)

    def altered(self: Any) -> str:
        return "0" * 64

    monkeypatch.setattr("afinar.training.optim.Optimizer.fixed_hash", altered)
    with pytest.raises(IntegrityError, match="frozen layers are not those"):
        train(plan_training(configuration, "run"), Group())
