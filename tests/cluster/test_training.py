"""Training on real Ray whose workers, raylets and drivers are killed: the model is the undisturbed one, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from afinar.config.train import TrainConfig
from afinar.models.registry.versions import find_model
from afinar.training.publish import TrainOutcome

from tests.cluster.test_chaos import REPOSITORY
from tests.conftest import SCRIPTS, Trained, run_afinar
from tests.training.runs import audited, config, run_on, steps_of, wait_for_step

INTERVAL = 7
STEPS = 168
FLAGS = (
    "--backbone squeezenet1_1 --cut features.5 --regime scratch --weights none --input-size 112 --epochs 24 "
    f"--batch-size 9 --checkpoint-steps {INTERVAL} --cores-per-worker 1"
).split()


@dataclass(frozen=True)
class Undisturbed:
    """A training of 168 steps by two workers to whom nothing happened."""

    config: TrainConfig
    outcome: TrainOutcome
    steps: dict[int, list[int]]


@pytest.fixture(scope="module")
def undisturbed(
    trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Undisturbed]:
    """Without Ray, which must change nothing either. No BatchNorm, no dropout before this cut."""
    folder = tmp_path_factory.mktemp("undisturbed")
    plain = config(
        trained, folder / "models", backbone="squeezenet1_1", cut="features.5", epochs=24, input_size=112, batch_size=9,
        checkpoint_steps=INTERVAL, cores_per_worker=1, audit=str(folder / "audit"),
    )  # fmt: skip
    outcome = run_on(2, plain, folder / "models")
    steps = steps_of(folder / "audit")
    assert len(steps) == STEPS
    yield Undisturbed(plain, outcome, steps)


def train(folder: Path, dataset: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run_afinar(
        "train", dataset, "models", *FLAGS, "--audit", "audit", "--json", *more, cwd=folder
    )


def require_same(undisturbed: Undisturbed, folder: Path, summary: dict[str, Any]) -> None:
    """The same weights from the same samples in the same steps, and at most one interval taken twice."""
    _, version = find_model(f"{folder / 'models'}@1")
    assert version.weights.sha256 == undisturbed.outcome.weights["sha256"]
    assert summary["metrics"] == undisturbed.outcome.metrics
    steps = steps_of(folder / "audit")
    assert {step: sorted(set(rows)) for step, rows in steps.items()} == undisturbed.steps
    assert len(replayed(undisturbed, folder)) <= INTERVAL
    assert not (folder / "models" / "versions" / "00000002.json").exists()


def replayed(undisturbed: Undisturbed, folder: Path) -> list[int]:
    steps = steps_of(folder / "audit")
    return [step for step, rows in steps.items() if len(rows) > len(undisturbed.steps[step])]


@pytest.mark.slow
def test_a_worker_is_killed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    words = [
        str(SCRIPTS / "afinar"),
        "train",
        undisturbed.config.dataset,
        "models",
        *FLAGS,
        "--audit",
        "audit",
    ]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(
            [*words, "--json", "--workers", "2"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        os.kill(wait_for_step(tmp_path / "audit", 17, workers=2)[1], signal.SIGKILL)
        said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, (tmp_path / "log").read_text()[-4000:]
    require_same(undisturbed, tmp_path, json.loads(said))
    assert "going on from step 14" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_the_driver_is_killed_and_its_command_run_again(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    words = [
        str(SCRIPTS / "afinar"),
        "train",
        undisturbed.config.dataset,
        "models",
        *FLAGS,
        "--audit",
        "audit",
    ]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen([*words, "--workers", "2"], cwd=tmp_path, stdout=log, stderr=log)
        wait_for_step(tmp_path / "audit", 17, workers=2)
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
    assert not (tmp_path / "models" / "versions").exists()
    next_attempt = train(tmp_path, undisturbed.config.dataset, "--workers", "2")
    assert next_attempt.returncode == 0, next_attempt.stderr[-4000:]
    assert "going on from step" in next_attempt.stderr
    require_same(undisturbed, tmp_path, json.loads(next_attempt.stdout))


@pytest.mark.slow
def test_a_raylet_is_killed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    disturbed = dataclasses.replace(
        undisturbed.config,
        models=str(tmp_path / "models"),
        audit=str(tmp_path / "audit"),
        workers=2,
    )
    words = [
        sys.executable,
        "-m",
        "tests.cluster.train_raylets",
        json.dumps(dataclasses.asdict(disturbed)),
    ]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (said,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert said["alive"] == 3, "the head and two of three nodes"
    _, version = find_model(f"{tmp_path / 'models'}@1")
    require_same(
        undisturbed, tmp_path, {"metrics": {k: version.metrics[k] for k in ("val", "test")}}
    )
    attempts = list((tmp_path / "audit").glob("run-0-*.jsonl"))
    assert len(attempts) == 2, "one before the raylet died and one after"


@pytest.mark.slow
def test_fewer_workers_go_on_where_the_cluster_shrinks(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Elastic: of three one-core nodes one dies, and the two workers that are left take the whole batch."""
    disturbed = dataclasses.replace(
        undisturbed.config,
        models=str(tmp_path / "models"),
        audit=str(tmp_path / "audit"),
        workers=3,
        min_workers=1,
    )
    words = [
        sys.executable,
        "-m",
        "tests.cluster.train_raylets",
        json.dumps(dataclasses.asdict(disturbed)),
    ]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert {one["workers"] for one in audited(tmp_path / "audit")} == {2, 3}
    steps = steps_of(tmp_path / "audit")
    assert {step: sorted(set(rows)) for step, rows in steps.items()} == undisturbed.steps
    _, version = find_model(f"{tmp_path / 'models'}@1")
    assert version.metrics["val"]["loss"] == pytest.approx(
        undisturbed.outcome.metrics["val"]["loss"], rel=1e-2
    )


def test_an_error_that_would_come_again_is_not_tried_again(
    trained: Trained, tmp_path: Path
) -> None:
    done = train(tmp_path, trained.dataset, "--workers", "2", "--learning-rate", "1e12")
    assert done.returncode == 1
    assert "the loss is not finite at step" in json.loads(done.stdout)["error"]
    assert done.stderr.count("the loss is not finite") == 1
    assert not (tmp_path / "models" / "versions").exists()
