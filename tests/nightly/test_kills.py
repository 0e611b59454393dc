"""Nights in real processes: killed in each step, suspended past their lease, two at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from afinar.models.registry.aliases import promotions
from afinar.nightly.records import count_decisions, current_test, read_nights
from afinar.predictions.part_reader import open_predictions
from afinar.storage.open import open_store
from afinar.storage.versions import versions
from tests.conftest import SCRIPTS
from tests.nightly.world import PhotoWorld

NOISE = 60.0
STEPS = (
    *("start", "ingest", "watch", "train", "rehearse", "evaluate", "gate", "promote"),
    *("label", "night"),
)
LEASE_MINUTES = 0.1


@pytest.fixture(scope="module")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> PhotoWorld:
    world = PhotoWorld(tmp_path_factory.mktemp("kills"))
    world.upload_all(12, noise=NOISE)
    world.archive(6, NOISE)
    record = world.night(promote="anyway")
    assert record.outcome == "promoted", record.reasons
    return world


@pytest.fixture
def world(first_night: PhotoWorld, tmp_path: Path) -> Iterator[PhotoWorld]:
    """A world after its first night, with uploads and pictures of the archive that are new."""
    backup = Path(shutil.copytree(first_night.root, tmp_path / "backup"))
    first_night.upload_all(6, noise=NOISE)
    first_night.archive(4, NOISE)
    _write_recipe(first_night)
    yield first_night
    shutil.rmtree(first_night.root)
    shutil.copytree(backup, first_night.root)


def _write_recipe(world: PhotoWorld) -> None:
    config = world.config()
    names = (
        *("source", "dataset", "models", "nights", "archive", "predictions", "backbone"),
        *("weights", "regime", "size", "split", "training"),
    )
    lines = [f"{name} = {json.dumps(getattr(config, name))}" for name in names]
    lines += [f"lease_minutes = {LEASE_MINUTES}", 'promote = "anyway"', "workers = 1"]
    (world.root / "nightly.toml").write_text("\n".join(lines) + "\n")


class Process:
    """A night as a process, which writes its output to a file."""

    def __init__(self, world: PhotoWorld, name: str) -> None:
        self.log = world.root / f"{name}.log"
        self.nights = world.root / "nights"
        with self.log.open("wb") as sink:
            self._process = subprocess.Popen(
                [SCRIPTS / "afinar", "nightly", "--recipe", "nightly.toml", "--json"],
                cwd=world.root,
                stdout=sink,
                stderr=sink,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def wait_for(self, step: str) -> None:
        """Wait until the record of a step of the second night is there."""
        name = "night.json" if step == "night" else f"steps/{step}.json"
        deadline = time.monotonic() + 300
        while not list(self.nights.glob(f"*-2/{name}")):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)

    def send(self, number: int) -> None:
        """Send a signal to the process and to those that it has started."""
        os.killpg(self._process.pid, number)

    def end(self, timeout_s: float = 300) -> int:
        return self._process.wait(timeout_s)


def assert_one_night_was_left_behind(world: PhotoWorld) -> None:
    """Every step has left one result, whoever carried it out."""
    nights = open_store(str(world.root / "nights"))
    models = open_store(str(world.root / "models"))
    records = read_nights(nights)
    assert [record.outcome for record in records] == ["promoted", "promoted"]
    assert (records[-1].champion, records[-1].candidate) == (2, 2)
    assert versions(models, "versions") == [1, 2]
    moved = [promotion for promotion in promotions(models) if "unchanged" not in promotion.why]
    assert [promotion.version for promotion in moved] == [1, 2]
    test = current_test(nights)
    assert test is not None
    assert count_decisions(nights, test) == 1
    archive = sorted(str(path) for path in (world.root / "archive").iterdir())
    folder = str(world.root / "predictions")
    uris = [
        uri
        for name in open_predictions(folder).partitions
        for uri in open_predictions(folder, name).table.column("uri").to_pylist()
    ]
    assert sorted(uris) == archive


@pytest.mark.slow
def test_a_night_that_is_killed_in_each_step_is_completed(world: PhotoWorld) -> None:
    for number, step in enumerate(STEPS[:-1]):
        process = Process(world, f"killed-after-{step}")
        process.wait_for(step)
        process.send(signal.SIGKILL)
        assert process.end() == -signal.SIGKILL, f"killed in step {STEPS[number + 1]}"
        _wait_for_the_lease()
        if (world.root / "nights" / "index.html").exists() and _has_ended(world):
            break  # the last steps take milliseconds: this kill came too late

    if not _has_ended(world):
        assert Process(world, "last").end() == 0
    assert_one_night_was_left_behind(world)


def _has_ended(world: PhotoWorld) -> bool:
    return bool(list((world.root / "nights").glob("*-2/night.json")))


def _wait_for_the_lease() -> None:
    time.sleep(60 * LEASE_MINUTES + 6)


def test_of_two_nights_one_runs_and_if_it_is_suspended_it_publishes_nothing(
    world: PhotoWorld,
) -> None:
    suspended = Process(world, "suspended")
    try:
        suspended.wait_for("start")
        second = Process(world, "second")
        assert second.end() == 3, second.log.read_text()
        suspended.send(signal.SIGSTOP)

        (lease, *_) = sorted((world.root / "nights" / "lock").iterdir())
        actor = json.loads(lease.read_text())["actor"]
        assert f"another night holds the lock: {actor}" in second.log.read_text()
        assert '"exit_code": 3' in second.log.read_text()

        _wait_for_the_lease()
        third = Process(world, "third")
        assert third.end() == 0, third.log.read_text()
        summary = json.loads(third.log.read_text().splitlines()[-1])
        assert summary["outcome"] == "promoted"
        assert set(summary) >= {"reasons", "steps", "champion", "candidate", "seconds", "report"}
        moved = len(promotions(open_store(str(world.root / "models"))))

        suspended.send(signal.SIGCONT)
        assert suspended.end() == 1, suspended.log.read_text()
        assert "suspended for longer than its lease" in suspended.log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            suspended.send(signal.SIGKILL)
    assert_one_night_was_left_behind(world)
    assert len(promotions(open_store(str(world.root / "models")))) == moved
