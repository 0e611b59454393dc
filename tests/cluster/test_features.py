"""Features with faults: what dies costs the units in flight, and nothing else.

The unmarked tests kill once; the slow ones kill driver, worker and raylet at twelve random moments.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from afinar.execution.executor import RayExecutor
from afinar.features.gc import verify_features
from afinar.features.reader import list_all, open_features
from afinar.units.results import UnitResult
from afinar.units.tasks import UnitTask
from tests.archives import ingest
from tests.cluster.faults import REPOSITORY, busy_workers
from tests.conftest import SCRIPTS, make_archive, run_afinar
from tests.features.jobs import compute, done_units, put_weights

PICTURES = 640
UNITS = 10
IN_FLIGHT = 2  # units of two workers


def _deadly_worker(make_work: Callable[[], Any], marks: Path) -> Callable[[UnitTask], UnitResult]:
    """Make a worker that notes its units, and kills itself once, after it has committed one."""
    work = make_work()

    def run(task: UnitTask) -> UnitResult:
        number = len(list(marks.iterdir()))
        (marks / f"{task.unit}-{task.attempt}-{os.getpid()}-{number}").touch()
        result: UnitResult = work(task)
        try:
            (marks.parent / "dead").touch(exist_ok=False)
        except FileExistsError:
            return result
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    return run


class DeadlyExecutor:
    """Runs units on Ray; the first worker that completes one is killed before it reports it."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def run(
        self, make_work: Callable[[], Any], tasks: Iterable[Any], policy: Any = None
    ) -> Iterator[Any]:
        deadly = partial(_deadly_worker, make_work, self.marks)
        return RayExecutor("auto", 2).run(deadly, tasks, policy)


@pytest.mark.usefixtures("local_ray")
def test_killed_worker_repeats_no_unit_but_its_own(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 90)
    dataset, marks = tmp_path / "dataset", tmp_path / "marks"
    marks.mkdir()
    ingest(archive, dataset)
    weights = put_weights(tmp_path / "small.safetensors")
    summary = compute(dataset, weights, DeadlyExecutor(marks), cut="3,6")
    assert {result.pictures for result in summary.features} == {180}
    assert len(open_features(str(dataset), cut="3").sample_ids) == 180

    units = [path.name.split("-")[0] for path in marks.iterdir()]
    assert (len(set(units)), len(units)) == (3, 4), "one unit ran twice"


@dataclass(frozen=True)
class Job:
    """A dataset of ten units without features, and the command that computes them."""

    folder: Path
    weights: str

    @property
    def dataset(self) -> str:
        return str(self.folder / "dataset")

    @property
    def argv(self) -> list[str]:
        options = "--backbone small_cnn --cut 3,6 --input-size 64 --workers 2"
        return ["features", self.dataset, "--weights", self.weights, *options.split()]

    def assert_complete(self) -> None:
        for features in list_all(self.dataset):
            assert len(features.index) == len(features.sample_ids) == PICTURES
        assert len(list_all(self.dataset)) == 2
        assert verify_features(self.dataset).damaged == []


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ingested")
    ingest(make_archive(folder / "pictures", PICTURES // 2), folder / "dataset")
    return folder / "dataset"


@pytest.fixture
def job(ingested: Path, tmp_path: Path) -> Job:
    shutil.copytree(ingested, tmp_path / "dataset")
    return Job(tmp_path, put_weights(tmp_path / "small.safetensors"))


def kill(victim: str, job: Job, rng: random.Random) -> set[str]:
    """Run the job, kill a process of it at a random moment; return the units committed then."""
    driver = subprocess.Popen([SCRIPTS / "afinar", *job.argv], cwd=job.folder)
    wanted = rng.randrange(UNITS - IN_FLIGHT)
    while driver.poll() is None and len(done_units(job.dataset)) < wanted:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    while not (workers := busy_workers(driver.pid)) and victim == "worker":
        assert driver.poll() is None, "the job must still be running when a worker is killed"
        time.sleep(0.01)
    (rng.choice(workers) if victim == "worker" else psutil.Process(driver.pid)).kill()
    committed = done_units(job.dataset)
    driver.wait(timeout=120)
    psutil.wait_procs(workers, timeout=60)  # they end with their driver
    return committed


def check_rerun(job: Job, committed: set[str]) -> None:
    """Run the command again: it computes what is missing, and changes no object."""
    before = {path: path.read_bytes() for path in Path(job.dataset).rglob("*.arrow")}
    done = run_afinar(*job.argv, "--json", cwd=job.folder)
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout)
    assert summary["read"] <= PICTURES - PICTURES // UNITS * len(committed)
    assert all(path.read_bytes() == data for path, data in before.items() if path.exists())
    job.assert_complete()


def test_killed_driver_is_completed_by_the_same_command(job: Job) -> None:
    check_rerun(job, kill("driver", job, random.Random(0)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_process_is_killed_at_a_random_moment(job: Job, victim: str, seed: int) -> None:
    check_rerun(job, kill(victim, job, random.Random(seed)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_raylet_is_killed_at_a_random_moment(job: Job, seed: int) -> None:
    argv = ["-m", "tests.cluster.feature_raylets", job.dataset, job.weights, str(seed)]
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Ray prints lines about its nodes, too.
    facts = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert facts["alive"] == 3 and facts["committed"] >= 1
    assert facts["read"] == PICTURES
    job.assert_complete()
