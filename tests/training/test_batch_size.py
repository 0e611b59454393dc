"""The batch size of a GPU: decision, trial on a network, and what a training takes from it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from afinar.training.batch_size import StepTimer, largest_useful_batch
from afinar.training.distributed import Group
from afinar.training.task import plan_training, resolve_task
from afinar.training.worker import train
from tests.conftest import Trained
from tests.training.runs import config


@pytest.mark.parametrize(
    ("times_ms", "expected"),
    [
        ({32: 0.7, 64: 0.4, 128: 0.25, 256: 0.22, 512: 0.215}, 256),
        ({32: 0.7, 64: 0.71, 128: 0.1}, 32),
        ({32: 0.7, 64: 0.4, 128: float("inf"), 256: 0.1}, 64),
        ({32: 0.7, 64: 0.5}, 64),
    ],
)
def test_largest_size_that_still_shortens_the_time_of_a_sample_wins(
    times_ms: dict[int, float], expected: int
) -> None:
    assert largest_useful_batch(list(times_ms), times_ms.__getitem__) == expected


def test_trial_changes_neither_the_network_nor_its_random_numbers() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 1)
    )
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    seconds = StepTimer(module, 8, torch.device("cpu"), torch.float32)(4)
    assert 0 < seconds < 60
    assert torch.equal(torch.rand(2), expected)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_size_does_not_fit_into_memory_its_time_is_infinite() -> None:
    class Full(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError

    module = nn.Sequential(Full(), nn.Linear(1, 1))
    assert StepTimer(module, 8, torch.device("cpu"), torch.float32)(4) == float("inf")


def test_batch_is_left_to_a_gpu_only_its_process_resolves_it(
    trained: Trained, tmp_path: Path
) -> None:
    task = plan_training(config(trained, tmp_path, batch_size="auto", epochs="auto"), "run")
    assert resolve_task(task, 1, on_gpu=True) is task, "the driver has no GPU to measure on"
    measured = resolve_task(task, 1, on_gpu=True, measure_batch=lambda: 16).config
    small = resolve_task(task, 1, on_gpu=True, measure_batch=lambda: 8).config
    assert (measured.batch_size, small.batch_size) == (16, 8)
    assert measured.learning_rate == pytest.approx(2**0.5 * small.learning_rate)
    fixed = plan_training(config(trained, tmp_path / "fixed", batch_size=8), "run")

    def fail() -> int:
        raise AssertionError("a batch size that is given is not measured")

    assert resolve_task(fixed, 1, on_gpu=True, measure_batch=fail).config.batch_size == 8


def test_batch_that_was_found_is_recorded_and_kept_when_the_run_resumes(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the one process of the group is told that it has one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real = resolve_task
    monkeypatch.setattr(
        "afinar.training.worker.resolve_task",
        lambda task, workers, on_gpu, measure_batch: real(
            task, workers, on_gpu=True, measure_batch=measure_batch
        ),
    )
    monkeypatch.setattr(
        "afinar.training.batch_size.StepTimer", lambda *_: {32: 2.0, 64: 1.0}.__getitem__
    )
    task = plan_training(config(trained, tmp_path, batch_size="auto", epochs=1), "run")
    result = train(task, Group())
    assert result.settings["batch_size"] == 32, "a tenth of the samples, at least 32"
    resolved = resolve_task(task, 1, on_gpu=True)
    assert resolved.config.batch_size == 32
    (note,) = (tmp_path / f"afinar-cache-{os.getuid()}").glob("note-train-batch-*")
    assert note.read_bytes() == b"32"


def test_auto_and_zero_are_the_same_training(trained: Trained, tmp_path: Path) -> None:
    auto, zero = (
        plan_training(config(trained, tmp_path, batch_size=size), "run") for size in ("auto", 0)
    )
    assert auto.fingerprint == zero.fingerprint
