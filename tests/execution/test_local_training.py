"""Training by one worker in the driver's process: choice, errors, interruption, resumption."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from afinar.config.train import TrainConfig
from afinar.errors import DivergedError, RequestError, StorageError
from afinar.execution import local_training
from afinar.models.registry.versions import find_model
from afinar.training.driver import run_training
from afinar.training.task import TrainTask, plan_training
from tests.conftest import SCRIPTS, Trained, heed_interrupts, run_afinar
from tests.training.runs import config, rows_by_step, wait_for_step

OPTIONS: dict[str, Any] = {
    "cut": "5",  # no dropout before it: weights are comparable
    "epochs": 60,
    "checkpoint_steps": 7,
    "workers": 1,
    "cores_per_worker": 1,
}
FLAGS = (
    "--backbone small_cnn --regime scratch --weights none --input-size 64 --batch-size 8 --cut 5 "
    "--epochs 60 --checkpoint-steps 7 --workers 1 --cores-per-worker 1 --audit audit"
).split()


@pytest.fixture(autouse=True)
def keep_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the hash of the weights of an undisturbed training by one worker."""
    threads = torch.get_num_threads()
    models = tmp_path_factory.mktemp("undisturbed")
    outcome = run_training(config(trained, models, **OPTIONS), local_training.train_here)
    torch.set_num_threads(threads)
    return outcome.version.weights.sha256


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_training_that_was_interrupted_or_killed_resumes_to_the_same_weights(
    undisturbed: str, trained: Trained, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    arguments = ["train", trained.dataset, "models", *FLAGS]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(
            [SCRIPTS / "afinar", *arguments],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            preexec_fn=heed_interrupts,  # noqa: PLW1509
        )
        try:
            (worker,) = wait_for_step(tmp_path / "audit", 17, workers=1, timeout_s=300).values()
            assert worker == job.pid, "no other process trains"
            job.send_signal(number)
            assert job.wait(120) == code
        finally:
            job.kill()
    output = (tmp_path / "log").read_text()
    assert "Traceback" not in output
    if number == signal.SIGINT:
        assert output.splitlines()[-1] == (
            "afinar: interrupted; the same command resumes the training from its newest checkpoint"
        )
    assert not (tmp_path / "models" / "versions").exists()

    done = run_afinar(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "resuming from step" in done.stderr
    _, version = find_model(f"{tmp_path / 'models'}@1")
    assert version.weights.sha256 == undisturbed
    repeated = [step for step, rows in rows_by_step(tmp_path / "audit").items() if len(rows) > 8]
    assert len(repeated) <= 2 * 7


@pytest.fixture
def task(trained: Trained, tmp_path: Path) -> TrainTask:
    return plan_training(config(trained, tmp_path / "models", workers=1, max_failures=2), "run")


def failing(*errors: Exception) -> tuple[Callable[..., None], list[Exception]]:
    """Return a worker that raises one error after the other, and those that are left."""
    left = list(errors)

    def run_worker(*_: Any) -> None:
        if left:
            raise left.pop(0)

    return run_worker, left


def test_error_that_may_pass_is_tried_again_as_often_as_asked_for(
    task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_training, "_RETRY_S", 0.0)
    worker, left = failing(StorageError("no answer"), ConnectionResetError())
    monkeypatch.setattr(local_training, "run_worker", worker)
    local_training.train_here(task)
    assert not left

    worker, left = failing(*(StorageError(f"no answer {number}") for number in range(9)))
    monkeypatch.setattr(local_training, "run_worker", worker)
    with pytest.raises(StorageError, match="no answer 2"):
        local_training.train_here(task)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (DivergedError("the loss is not finite"), DivergedError),
        (MemoryError(), RequestError),
        (KeyError("a bug"), KeyError),
    ],
)
def test_error_that_recurs_is_raised_at_once(
    error: Exception,
    raised: type[Exception],
    task: TrainTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, left = failing(error, StorageError("a second attempt"))
    monkeypatch.setattr(local_training, "run_worker", worker)
    with pytest.raises(raised):
        local_training.train_here(task)
    assert len(left) == 1


def test_several_workers_are_launched_on_ray(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afinar.execution import train_launcher

    places: list[str] = []
    monkeypatch.setattr(local_training, "train_here", lambda *_: places.append("here"))
    monkeypatch.setattr(train_launcher, "launch_on_ray", lambda *_: places.append("ray"))

    def launch(**options: Any) -> None:
        configuration: TrainConfig = config(trained, tmp_path, **options)
        local_training.launch(plan_training(configuration, "run"))

    launch(workers=1)
    launch(workers=2)
    launch(workers=1, address="local")
    assert places == ["here", "ray", "ray"]
