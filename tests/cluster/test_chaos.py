"""Ingest with faults, on a real Ray and without: processes die, messages are lost, jobs compete.

Each test requires the dataset that an undisturbed ingest writes.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from afinar import open_dataset
from afinar.storage.markers import committed_units
from afinar.storage.open import open_store
from afinar.units.executor import Executor
from tests.archives import ingest
from tests.cluster.dangerous import KILLER, STOPPER, DangerousExecutor
from tests.cluster.faults import REPOSITORY, RPC_CHAOS, busy_workers
from tests.conftest import SCRIPTS, make_archive, many_pictures, run_afinar
from tests.datasets import object_hashes

PICTURES = 960  # few enough for processes without Ray
WITHOUT_RAY = ("--workers", "2")
ON_RAY = (*WITHOUT_RAY, "--address", "local")


@dataclass(frozen=True)
class Undisturbed:
    """A source, and the index and the shards that an undisturbed ingest of it writes."""

    source: Path
    index: pa.Table
    shards: dict[str, str]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    source, dataset = many_pictures(folder / "pictures", PICTURES), str(folder / "dataset")
    ingest(source, dataset, size=32)
    return Undisturbed(source, open_dataset(dataset).index, object_hashes(dataset, "shards"))


def assert_equal(dataset: Path, expected: Undisturbed) -> None:
    assert open_dataset(str(dataset)).index == expected.index
    assert object_hashes(dataset, "shards") == expected.shards


def test_picture_kills_its_worker_it_is_a_reject_and_the_others_are_ingested(
    killable_executor: Executor, tmp_path: Path
) -> None:
    executor = DangerousExecutor(killable_executor)
    archive = make_archive(tmp_path / "pictures", 60)
    for name in ("rust/003.jpg", "rust/040.jpg"):
        (archive / name).write_bytes((archive / name).read_bytes() + KILLER)
    summary = ingest(archive, tmp_path / "dataset", executor)
    assert (summary.samples, summary.rejects_by_reason) == (118, {"killed_worker": 2})
    rejects = open_dataset(str(tmp_path / "dataset")).rejects.column("uri").to_pylist()
    assert rejects == [f"{archive}/rust/003.jpg", f"{archive}/rust/040.jpg"]
    assert not list(open_store(str(tmp_path / "dataset")).walk("attempts"))
    again = ingest(archive, tmp_path / "dataset", executor)
    assert (again.units_run, again.rejects) == (0, 2), "a rejected picture is not read again"


@pytest.mark.slow
def test_picture_hangs_its_worker_it_is_a_reject_of_the_ingest(
    killable_executor: Executor, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path / "pictures", 12)
    (archive / "rust/003.jpg").write_bytes((archive / "rust/003.jpg").read_bytes() + STOPPER)
    executor = DangerousExecutor(killable_executor)
    summary = ingest(archive, tmp_path / "dataset", executor, unit_timeout_s=2.0, max_reject_rate=1)
    assert (summary.samples, summary.rejects_by_reason) == (23, {"killed_worker": 1})


def test_memory_is_full_ingest_ends_with_a_sentence(archive: Path, tmp_path: Path) -> None:
    arguments = ["ingest", str(archive), "dataset", "--size", "32", "--address", "local"]
    environment = {"RAY_memory_usage_threshold": "0.01"}
    done = run_afinar(*arguments, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("afinar: ")
    # Workers are killed either as they start or before they finish a unit: each has its sentence.
    assert "memory is full" in last
    assert "give fewer --workers" in last


def ingest_command(source: Path, dataset: Path, *more: str) -> list[str]:
    return [str(SCRIPTS / "afinar"), "ingest", str(source), str(dataset), "--size", "32", *more]


@pytest.mark.parametrize("flags", [ON_RAY, WITHOUT_RAY], ids=["ray", "processes"])
def test_workers_killed_at_random_moments_dataset_is_the_undisturbed_one(
    undisturbed: Undisturbed, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    dataset, rng = tmp_path / "dataset", random.Random(0)
    command = ingest_command(undisturbed.source, dataset, *flags)
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    killed = committed = 0
    while driver.poll() is None:
        # Between two kills a unit is committed: three workers that die as they start end the job.
        now = len(list((dataset / "units").glob("*.json")))
        if killed < 3 and now > committed and (workers := busy_workers(driver.pid)):
            rng.choice(workers).kill()
            killed, committed = killed + 1, now
        time.sleep(0.1 + rng.random() / 4)
    assert driver.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert killed == 3
    assert_equal(dataset, undisturbed)


def test_raylet_killed_midway_dataset_is_the_undisturbed_one(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    command = [sys.executable, "-m", "tests.cluster.raylets", str(undisturbed.source), str(dataset)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    died = re.search(r"committed when the raylet died: (\d+)", done.stdout)
    assert died, done.stdout
    assert int(died[1]) < len(undisturbed.shards), "it died midway"
    assert f"samples: {PICTURES} nodes alive: 3" in done.stdout
    assert_equal(dataset, undisturbed)


@pytest.mark.slow
def test_messages_lost_between_driver_and_workers_dataset_is_the_undisturbed_one(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    arguments = ["ingest", str(undisturbed.source), "dataset", "--size", "32", *ON_RAY]
    environment = {"RAY_testing_rpc_failure": RPC_CHAOS}
    done = run_afinar(*arguments, "--json", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["samples"] == PICTURES
    assert_equal(tmp_path / "dataset", undisturbed)


@pytest.mark.parametrize("flags", [("--address", "local"), ()], ids=["ray", "processes"])
def test_two_ingests_at_once_every_unit_is_committed_once(
    undisturbed: Undisturbed, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    dataset = tmp_path / "dataset"
    command = ingest_command(undisturbed.source, dataset, "--workers", "1", *flags)
    drivers = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [driver.communicate(timeout=300) for driver in drivers]
    codes = [driver.returncode for driver in drivers]
    assert 0 in codes, outputs
    for code, (_, errors) in zip(codes, outputs, strict=True):
        assert code in {0, 1}, errors[:6000]
        assert code == 0 or "published first" in errors, errors[-3000:]
    assert_equal(dataset, undisturbed)
    assert len(committed_units(open_store(str(dataset)))) == len(undisturbed.shards)
