"""Ingest on a real Ray whose workers, raylets and messages are lost: the dataset is the undisturbed one."""

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

import psutil
import pyarrow as pa
import pytest
from afinar import open_dataset
from afinar.config.ingest import IngestConfig
from afinar.ingest.driver import run_ingest
from afinar.storage.markers import committed_units
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor

from tests.conftest import SCRIPTS, many_pictures, run_afinar

REPOSITORY = Path(__file__).parents[2]
PICTURES = 1600

# Ray loses requests and replies, and breaks connections, so that tasks run twice and late.
RPC_CHAOS = json.dumps({
    "CoreWorkerService.grpc_client.PushTask": {
        "num_failures": 20, "req_failure_prob": 10, "resp_failure_prob": 30, "in_flight_failure_prob": 10,
    }
})  # fmt: skip


@dataclass(frozen=True)
class Undisturbed:
    """A source, and what an ingest of it writes when nothing goes wrong."""

    source: Path
    index: pa.Table
    shards: dict[str, str]


def hashes(dataset: Path) -> dict[str, str]:
    store = open_store(str(dataset))
    return {info.name: sha256(store.get(info.name)) for info in store.walk("shards")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    source = many_pictures(folder / "pictures", PICTURES)
    run_ingest(
        IngestConfig(source=str(source), dataset=str(folder / "dataset"), size=32), InlineExecutor()
    )
    return Undisturbed(
        source, open_dataset(str(folder / "dataset")).index, hashes(folder / "dataset")
    )


def require_equal(dataset: Path, wanted: Undisturbed) -> None:
    assert open_dataset(str(dataset)).index == wanted.index
    assert hashes(dataset) == wanted.shards


def workers_of(driver: int) -> list[psutil.Process]:
    """Ray's worker processes below a driver that are carrying out a unit."""
    try:
        family = psutil.Process(driver).children(recursive=True)
        return [
            process
            for process in family
            if any("ray::build_shard" in word for word in process.cmdline())
        ]
    except psutil.NoSuchProcess:
        return []


def test_workers_killed_at_random_moments_lose_and_repeat_nothing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    dataset, rng = tmp_path / "dataset", random.Random(0)
    words = [
        str(SCRIPTS / "afinar"),
        "ingest",
        str(undisturbed.source),
        str(dataset),
        "--size",
        "32",
        "--workers",
        "2",
    ]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log)
    killed = 0
    while driver.poll() is None:
        if killed < 3 and (workers := workers_of(driver.pid)):
            rng.choice(workers).kill()
            killed += 1
        time.sleep(0.2 + rng.random() / 2)
    assert driver.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert killed == 3
    require_equal(dataset, undisturbed)


def test_a_raylet_that_dies_takes_nothing_with_it(undisturbed: Undisturbed, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    words = [sys.executable, "-m", "tests.cluster.raylets", str(undisturbed.source), str(dataset)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        words,
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
    require_equal(dataset, undisturbed)


@pytest.mark.slow
def test_messages_lost_between_driver_and_workers_repeat_units_and_change_nothing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    words = [
        "ingest",
        str(undisturbed.source),
        "dataset",
        "--size",
        "32",
        "--workers",
        "2",
        "--json",
    ]
    done = run_afinar(*words, cwd=tmp_path, env={"RAY_testing_rpc_failure": RPC_CHAOS})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["samples"] == PICTURES
    require_equal(tmp_path / "dataset", undisturbed)


def test_two_ingests_at_once_lose_nothing_and_do_nothing_twice(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    words = [
        str(SCRIPTS / "afinar"),
        "ingest",
        str(undisturbed.source),
        str(dataset),
        "--size",
        "32",
        "--workers",
        "1",
    ]
    twins = [
        subprocess.Popen(
            words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [twin.communicate(timeout=300) for twin in twins]
    codes = [twin.returncode for twin in twins]
    assert 0 in codes, outputs
    for code, (_, errors) in zip(codes, outputs, strict=True):
        assert code in {0, 1}, errors[:6000]
        assert code == 0 or "published first" in errors, errors[-3000:]
    require_equal(dataset, undisturbed)
    assert len(committed_units(open_store(str(dataset)))) == len(undisturbed.shards)
