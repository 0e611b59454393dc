"""Training on Ray while workers, raylets and drivers are killed: same weights, bit for bit."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from afinar.config.train import TrainConfig
from afinar.errors import RequestError, ShortfallError
from afinar.execution import train_launcher
from afinar.models.registry.versions import find_model
from afinar.training.driver import run_training, run_trial
from afinar.training.hooks import Metrics
from afinar.training.publish import TrainResult
from tests.cluster.faults import REPOSITORY
from tests.conftest import SCRIPTS, Trained, run_afinar
from tests.training.runs import config, read_sample_logs, rows_by_step, run_on, wait_for_step

INTERVAL = 7
STEPS = 168
FLAGS = (
    "--backbone squeezenet1_1 --cut features.5 --regime scratch --weights none --input-size 112 "
    f"--epochs 24 --batch-size 9 --checkpoint-steps {INTERVAL} --cores-per-worker 1"
).split()


@dataclass(frozen=True)
class Undisturbed:
    """An undisturbed training of 168 steps by two workers."""

    config: TrainConfig
    result: TrainResult
    steps: dict[int, list[int]]


@pytest.fixture(scope="module")
def undisturbed(
    trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Undisturbed]:
    """Train without Ray. No BatchNorm and no dropout before this cut, so weights are comparable."""
    folder = tmp_path_factory.mktemp("undisturbed")
    configuration = config(
        trained,
        folder / "models",
        backbone="squeezenet1_1",
        cut="features.5",
        epochs=24,
        input_size=112,
        batch_size=9,
        checkpoint_steps=INTERVAL,
        cores_per_worker=1,
        audit=str(folder / "audit"),
    )
    result = run_on(2, configuration, folder / "models")
    steps = rows_by_step(folder / "audit")
    assert len(steps) == STEPS
    yield Undisturbed(configuration, result, steps)


def train(folder: Path, dataset: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run_afinar(
        "train", dataset, "models", *FLAGS, "--audit", "audit", "--json", *more, cwd=folder
    )


def train_command(undisturbed: Undisturbed) -> list[str]:
    afinar = str(SCRIPTS / "afinar")
    return [afinar, "train", undisturbed.config.dataset, "models", *FLAGS, "--audit", "audit"]


def train_on_raylets(configuration: TrainConfig) -> subprocess.CompletedProcess[str]:
    options = json.dumps(dataclasses.asdict(configuration))
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.train_raylets", options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def assert_same_training(undisturbed: Undisturbed, folder: Path, summary: dict[str, Any]) -> None:
    """Same weights from the same samples in the same steps.

    At most two intervals are repeated: the newest checkpoint may not have been written yet.
    """
    _, version = find_model(f"{folder / 'models'}@1")
    assert version.weights.sha256 == undisturbed.result.weights["sha256"]
    assert summary["metrics"] == undisturbed.result.metrics
    steps = rows_by_step(folder / "audit")
    assert {step: sorted(set(rows)) for step, rows in steps.items()} == undisturbed.steps
    assert len(repeated_steps(undisturbed, folder)) <= 2 * INTERVAL
    assert not (folder / "models" / "versions" / "00000002.json").exists()


def repeated_steps(undisturbed: Undisturbed, folder: Path) -> list[int]:
    steps = rows_by_step(folder / "audit")
    return [step for step, rows in steps.items() if len(rows) > len(undisturbed.steps[step])]


@pytest.mark.slow
def test_killed_worker_is_replaced_and_training_resumes(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    command = train_command(undisturbed)
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(
            [*command, "--json", "--workers", "2"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        os.kill(wait_for_step(tmp_path / "audit", 17, workers=2)[1], signal.SIGKILL)
        output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, (tmp_path / "log").read_text()[-4000:]
    assert_same_training(undisturbed, tmp_path, json.loads(output))
    assert re.search(r"resuming from step (7|14)\b", (tmp_path / "log").read_text())


@pytest.mark.slow
def test_killed_driver_resumes_when_its_command_is_run_again(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    command = train_command(undisturbed)
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen([*command, "--workers", "2"], cwd=tmp_path, stdout=log, stderr=log)
        wait_for_step(tmp_path / "audit", 17, workers=2)
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
    assert not (tmp_path / "models" / "versions").exists()
    next_attempt = train(tmp_path, undisturbed.config.dataset, "--workers", "2")
    assert next_attempt.returncode == 0, next_attempt.stderr[-4000:]
    assert "resuming from step" in next_attempt.stderr
    assert_same_training(undisturbed, tmp_path, json.loads(next_attempt.stdout))


@pytest.mark.slow
def test_killed_raylet_is_replaced_and_training_resumes(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    disturbed = dataclasses.replace(
        undisturbed.config,
        models=str(tmp_path / "models"),
        audit=str(tmp_path / "audit"),
        workers=2,
    )
    done = train_on_raylets(disturbed)
    (summary,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert summary["alive"] == 3, "the head and two of three nodes"
    _, version = find_model(f"{tmp_path / 'models'}@1")
    assert_same_training(
        undisturbed, tmp_path, {"metrics": {k: version.metrics[k] for k in ("val", "test")}}
    )
    attempts = list((tmp_path / "audit").glob("run-0-*.jsonl"))
    assert len(attempts) == 2, "one before the raylet died and one after"


@pytest.mark.slow
def test_elastic_training_continues_with_fewer_workers_when_the_cluster_shrinks(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """One of three one-core nodes dies; the two workers that remain compute the whole batch."""
    disturbed = dataclasses.replace(
        undisturbed.config,
        models=str(tmp_path / "models"),
        audit=str(tmp_path / "audit"),
        workers=3,
        min_workers=1,
    )
    train_on_raylets(disturbed)
    assert {record["workers"] for record in read_sample_logs(tmp_path / "audit")} == {2, 3}
    steps = rows_by_step(tmp_path / "audit")
    assert {step: sorted(set(rows)) for step, rows in steps.items()} == undisturbed.steps
    _, version = find_model(f"{tmp_path / 'models'}@1")
    assert version.metrics["val"]["loss"] == pytest.approx(
        undisturbed.result.metrics["val"]["loss"], rel=1e-2
    )


def test_recurring_error_ends_the_job_at_once(trained: Trained, tmp_path: Path) -> None:
    done = train(tmp_path, trained.dataset, "--workers", "2", "--learning-rate", "1e12")
    assert done.returncode == 1
    assert "the loss is not finite at step" in json.loads(done.stdout)["error"]
    assert done.stderr.count("the loss is not finite") == 1
    assert not (tmp_path / "models" / "versions").exists()


@pytest.mark.slow
def test_cluster_without_room_for_the_workers_aborts_the_training(
    local_ray: None, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster shrinks after the first steps; Ray Train itself would wait forever."""
    configuration = config(
        trained, tmp_path, epochs=4000, workers=2, start_timeout_s=2, audit=str(tmp_path / "audit")
    )

    def fits_until_the_first_steps(*_: Any) -> bool:
        return len(list((tmp_path / "audit").glob("*.jsonl"))) < 2

    monkeypatch.setattr(train_launcher, "fits", fits_until_the_first_steps)
    monkeypatch.setattr(train_launcher, "_CAPACITY_POLL_S", 0.5)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ShortfallError, match="no room for 2 workers for 2 s"):
        run_training(configuration, train_launcher.launch_on_ray, "run")
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "versions").exists()


def stop_after_two(metrics: Metrics) -> bool:
    return metrics["epoch"] == 2


def test_trainings_at_once_wait_for_room_and_stop_when_they_are_asked_to(
    local_ray: None,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two have room at once, on a Ray of two cores; the third waits, longer than its timeout."""
    monkeypatch.setattr(train_launcher, "_WAIT_LOG_S", 0.5)
    caplog.set_level(logging.INFO)
    launch = functools.partial(train_launcher.launch_on_ray, should_stop=stop_after_two)
    options = [{"workers": 1}, {"workers": 1}, {"workers": 2, "batch_size": 9}]
    configurations = [
        config(trained, tmp_path / "models", seed=seed, start_timeout_s=1, epochs=4, **more)
        for seed, more in enumerate(options)
    ]
    with ThreadPoolExecutor() as threads:
        trials = list(threads.map(lambda each: run_trial(each, launch), configurations))

    assert [trial.result.epochs for trial in trials] == [2, 2, 2]
    assert len({trial.task.run for trial in trials}) == 3
    assert not (tmp_path / "models" / "versions").exists()
    assert "cores are free and the workers started" in caplog.text


def test_memory_that_runs_out_ends_the_training_after_one_attempt(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    attempts = tmp_path / "attempts"

    def run_out(metrics: Metrics) -> bool:
        with attempts.open("a") as log:
            log.write("attempt\n")
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    launch = functools.partial(train_launcher.launch_on_ray, should_stop=run_out)
    configuration = config(trained, tmp_path / "models", workers=2, max_failures=3)
    with pytest.raises(RequestError, match="give a smaller --batch-size, or --accumulate 2"):
        run_training(configuration, launch, "run")
    assert attempts.read_text() == "attempt\n"
    assert not (tmp_path / "models" / "versions").exists()
