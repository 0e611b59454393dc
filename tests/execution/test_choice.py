"""Decide whether a job runs on Ray, from the request and the machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.execution import choice, executor
from afinar.execution.choice import Few, Machine, choose_for_training, choose_for_units
from afinar.execution.executor import JobExecutor, LocalExecutor, RayExecutor, asks_for_ray
from afinar.units.executor import RetryPolicy
from tests.work import make_double

LAPTOP = Machine(cores=8, gpus=0)
WORKSTATION = Machine(cores=8, gpus=1)
SERVER = Machine(cores=8, gpus=2)


def for_units(pictures: int = 500, units: int = 10, **options: Any) -> choice.Choice:
    values: dict[str, Any] = {
        "few": Few(500, one_process=200), "workers": 0, "asks_for_ray": False, "uses_gpus": True,
        "machine": LAPTOP,
    }  # fmt: skip
    return choose_for_units(pictures, units, **(values | options))


def test_few_pictures_need_no_ray() -> None:
    assert for_units().without_ray
    assert not for_units(501).without_ray
    assert not for_units(1, asks_for_ray=True).without_ray


def test_processes_are_those_asked_for_or_the_cores_and_no_more_than_units() -> None:
    assert for_units().processes == 8
    assert for_units(workers=2).processes == 2
    assert for_units(units=3).processes == 3
    assert for_units(200, 4, workers=2).reason == (
        "200 pictures: 2 processes without Ray (--address local starts Ray)"
    )
    assert for_units(9, 1).reason.startswith("9 pictures: 1 process without Ray")


def test_one_process_has_all_cores_for_few_pictures_and_those_that_units_leave() -> None:
    def chosen(pictures: int, units: int = 10, **options: Any) -> tuple[int, int]:
        found = for_units(pictures, units, **options)
        return found.processes, found.cores

    assert chosen(201) == (8, 1)
    assert chosen(200) == (1, 8)
    assert chosen(201, units=3) == (3, 2)
    assert chosen(200, workers=2) == (2, 1), "as many as were asked for, of one core each"
    assert chosen(200, few=Few(2000)) == (8, 1), "an ingest has no network to load"


def test_work_on_gpus_needs_ray() -> None:
    assert not for_units(machine=WORKSTATION).without_ray
    assert for_units(machine=WORKSTATION, uses_gpus=False).without_ray


@pytest.mark.parametrize(
    ("pictures", "workers", "machine", "without_ray"),
    [
        (10**6, 1, LAPTOP, True),
        (10**6, 1, SERVER, True),
        (100, 2, LAPTOP, False),
        (100, 2, SERVER, False),
        (2000, 0, LAPTOP, True),
        (2001, 0, LAPTOP, False),  # a second worker pays
        (10**6, 0, Machine(cores=1, gpus=0), True),
        (10**6, 0, WORKSTATION, True),  # one worker, on the GPU
        (100, 0, SERVER, False),  # a worker per GPU
    ],
)
def test_training_by_one_worker_needs_no_ray(
    pictures: int, workers: int, machine: Machine, without_ray: bool
) -> None:
    choose = partial(choose_for_training, pictures, workers=workers, min_workers=0, machine=machine)
    assert choose(asks_for_ray=False).without_ray is without_ray
    assert not choose(asks_for_ray=True).without_ray


def test_an_address_asks_for_ray_be_it_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not asks_for_ray(None)
    assert asks_for_ray("local")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert asks_for_ray(None)


def test_cores_of_a_container_and_hidden_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("0", "1"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    monkeypatch.setattr(choice, "_GPUS", tmp_path / "gpus")
    monkeypatch.setattr(choice, "_CGROUP_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choice.this_machine() == Machine(cores=6, gpus=2)
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert choice.this_machine() == Machine(cores=3, gpus=1)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choice.this_machine() == Machine(cores=6, gpus=0)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the executors that run; all run their units in this process."""
    used: list[str] = []

    def run(name: str) -> Any:
        def run(
            self: Any, make_work: Callable[[], Any], tasks: Iterable[Any], policy: Any = None
        ) -> Iterator[Any]:
            used.append(name)
            yield from map(make_work(), tasks)

        return run

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(LocalExecutor, "run", run("processes"))
    monkeypatch.setattr(RayExecutor, "run", run("ray"))
    monkeypatch.setattr(executor, "this_machine", lambda: LAPTOP)
    return used


def ingest_config(**options: Any) -> IngestConfig:
    return IngestConfig(source="pictures", dataset="dataset", **options)


def test_job_runs_where_its_pictures_decide_and_no_unit_is_lost(
    used: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    label = LabelConfig(source="pictures", predictions="out", model="models")
    work: Any = partial(make_double, 0)
    policy: RetryPolicy[Any] = RetryPolicy()
    for config, pictures, where in (
        (label, 500, "processes"), (label, 501, "ray"),
        (ingest_config(), 2000, "processes"), (ingest_config(), 2001, "ray"),
        (ingest_config(address="local"), 1, "ray"),
    ):  # fmt: skip
        done = list(JobExecutor(config).run(work, iter(range(pictures)), policy))
        assert done == list(range(0, 2 * pictures, 2))
        assert used.pop() == where
    assert caplog.text.count("without Ray") == 2


def test_units_that_decode_nothing_start_nothing(used: list[str]) -> None:
    """Such as those of a compaction, or of `forget`, which copies what is not erased."""
    sized = [SimpleNamespace(pictures=10_000) for _ in range(3)]
    assert len(list(JobExecutor(ingest_config()).run(lambda: len_of, sized[:2]))) == 2
    assert used == []
    assert len(list(JobExecutor(ingest_config()).run(lambda: len_of, sized))) == 3
    assert used == ["ray"]


def len_of(task: Any) -> int:
    return int(task.pictures)
