"""Executors on a real Ray and without Ray: results, errors, workers that die or hang, no room.

The decisions are tested without Ray in tests/execution/test_retry.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from afinar.errors import ModelError, RequestError, ShortfallError, StorageError
from afinar.execution.actor_pool import ActorPool
from afinar.execution.executor import LocalExecutor, RayExecutor
from afinar.execution.retry import PoolPolicy
from afinar.execution.session import wait_for_resources
from afinar.execution.train_launcher import _first_failure
from afinar.execution.worker import Worker
from afinar.logs import log_settings
from afinar.units.executor import Executor, Preprocessing, RetryPolicy
from tests.work import (
    Attempt,
    make_broken,
    make_crash,
    make_dead,
    make_die_once,
    make_double,
    make_fatal,
    make_log_and_print,
    make_refuse,
)

MakeExecutor = Callable[..., Executor]


@pytest.fixture(params=["ray", "processes"])
def make_executor(request: pytest.FixtureRequest) -> MakeExecutor:
    """Return a function that makes an executor: on Ray, or on processes of this machine."""
    if request.param == "processes":
        return lambda workers=2, **options: LocalExecutor(workers, **options)
    request.getfixturevalue("local_ray")
    return lambda workers=0, **options: RayExecutor(None, workers, **options)


def test_every_task_has_one_result(make_executor: MakeExecutor) -> None:
    results = make_executor().run(partial(make_double, 1), range(50))
    assert sorted(results) == list(range(1, 101, 2))
    assert list(make_executor().run(partial(make_double, 1), [])) == []


def test_actors_without_room_do_not_delay_the_job(local_ray: None) -> None:
    assert sorted(RayExecutor(None, workers=5).run(partial(make_double, 0), range(20))) == list(
        range(0, 40, 2)
    )


def test_errors_of_the_work_are_raised_unwrapped(make_executor: MakeExecutor) -> None:
    with pytest.raises(RequestError, match="no 3"):
        list(make_executor().run(make_refuse, [3]))
    with pytest.raises(ModelError, match="golden"):
        list(make_executor().run(make_broken, [1, 2]))
    with pytest.raises(ZeroDivisionError):
        list(make_executor().run(make_crash, [3]))


def test_workers_log_lines_reach_the_console_without_other_output(
    make_executor: MakeExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    assert list(make_executor().run(make_log_and_print, [1])) == [1]
    out, err, deadline = "", "", time.monotonic() + 30
    while "logged" not in err and time.monotonic() < deadline:
        time.sleep(0.1)  # Ray's log monitor reads the output of workers about once a second
        output = capfd.readouterr()
        out, err = out + output.out, err + output.err
    assert err.splitlines() == ["logged by unit 1"]
    assert out == ""


@pytest.mark.slow
def test_worker_that_dies_is_replaced_and_its_unit_retried(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    results = make_executor().run(make_die_once, [tmp_path / "c", tmp_path / "d"])
    assert sorted(results) == ["c", "d"]


def test_workers_that_die_at_every_start_fail_the_job(make_executor: MakeExecutor) -> None:
    with pytest.raises(StorageError, match="3 workers in a row died as they started"):
        list(make_executor().run(make_dead, range(10)))


@pytest.mark.slow
def test_retried_unit_has_the_task_of_the_next_attempt(make_executor: MakeExecutor) -> None:
    units = [Attempt("one", 2), *(Attempt(str(number), 0) for number in range(6))]
    policy = RetryPolicy(next_attempt=Attempt.next_attempt)
    done = dict(make_executor().run(make_fatal, units, policy))
    assert done.pop("one") == 2
    assert set(done) == {str(number) for number in range(6)}
    assert set(done.values()) == {0}, "units queued behind the fatal one have no attempt more"


def make_watchful() -> Callable[[Attempt], tuple[str, int, bool]]:
    """Return work that also returns whether another unit ran in its process at the same time."""
    running: set[str] = set()

    def work(unit: Attempt) -> tuple[str, int, bool]:
        running.add(unit.name)
        time.sleep(0.3)
        is_alone = running == {unit.name}
        if unit.attempt < unit.fatal:
            os._exit(1)
        running.remove(unit.name)
        return unit.name, unit.attempt, is_alone

    return work


def test_worker_with_a_device_overlaps_units_a_retried_one_is_alone(local_ray: None) -> None:
    units = [Attempt("fatal", 2), *(Attempt(str(number), 0) for number in range(8))]
    executor = RayExecutor(None, workers=1, always_preprocess=True)
    policy = RetryPolicy(next_attempt=Attempt.next_attempt, uses_gpus=True)
    results = {name: rest for name, *rest in executor.run(make_watchful, units, policy)}
    assert set(results) == {unit.name for unit in units}
    assert results["fatal"] == [2, True]
    assert all(is_alone for attempt, is_alone in results.values() if attempt)
    assert sum(not is_alone for _, is_alone in results.values()) >= 4, "the others overlap"


def prepare_slowly(number: int) -> int:
    time.sleep(0.05)
    return 10 * number


def make_sum() -> Callable[..., int]:
    return lambda unit, blocks=(): sum(blocks) or 10 * unit  # a retry has no blocks


def test_blocks_of_further_units_are_prepared_ahead(local_ray: None) -> None:
    """Units of one block each: those that wait for the worker are prepared, too, but not all."""
    started: list[int] = []

    def blocks(unit: int) -> list[int]:
        started.append(unit)
        return [unit]

    executor = RayExecutor(None, workers=1, always_preprocess=True)
    preprocessing = Preprocessing(blocks=blocks, prepare=prepare_slowly)
    results = executor.run(
        make_sum, range(30), RetryPolicy(uses_gpus=True, preprocessing=preprocessing)
    )
    first = next(results)
    assert 4 <= len(started) <= 8, "two blocks per core, and those of finished units"
    assert sorted([first, *results]) == [10 * number for number in range(30)]
    assert started == list(range(30))


def test_idle_workers_take_over_the_units_of_a_dead_one_without_room_for_another(
    local_ray: None,
) -> None:
    actor_class, made = ray.remote(num_cpus=1)(Worker), list[Any]()

    def make_actor() -> Any:
        has_room = len(made) < 2
        made.append(actor_class if has_room else actor_class.options(resources={"nowhere": 1}))
        return made[-1].remote(make_fatal, log_settings())

    units = [Attempt("one", 1), Attempt("two", 0)]
    pool = ActorPool(
        make_actor, lambda: 2, units, RetryPolicy(next_attempt=Attempt.next_attempt), lambda: None
    )
    assert sorted(pool.results()) == [("one", 1), ("two", 0)]


def test_pool_grows_with_the_cluster(local_ray: None) -> None:
    actor_class, made = ray.remote(num_cpus=1)(Worker), list[Any]()

    def make_actor() -> Any:
        made.append(actor_class.remote(partial(make_double, 0), log_settings()))
        return made[-1]

    def size() -> int:
        return 2 if made else 1

    pool = ActorPool(make_actor, size, range(9), RetryPolicy(), lambda: None)
    assert sorted(pool.results()) == list(range(0, 18, 2))
    assert len(made) == 2
    for actor in made:  # they hold both cores
        ray.kill(actor)
    few = ActorPool(make_actor, lambda: 5, [1], RetryPolicy(), lambda: None)
    assert list(few.results()) == [2]
    assert len(made) == 3, "no more workers than units"


@pytest.mark.parametrize(
    ("address", "workers", "size"), [(None, 0, 3), ("10.0.0.1:6379", 0, 6), ("10.0.0.1:6379", 5, 5)]
)
def test_cluster_is_asked_for_more_workers_than_it_has_room_for(
    address: str | None, workers: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("afinar.execution.session.cluster_cores", lambda: 3)
    assert RayExecutor(address, workers)._pool_size(uses_gpus=False) == size


@pytest.mark.slow
def test_hung_worker_is_replaced(make_executor: MakeExecutor) -> None:
    units = [Attempt("hung", 1, hangs=True), Attempt("other", 0)]
    policy = RetryPolicy(deadline_s=lambda _: 3.0, next_attempt=Attempt.next_attempt)
    done = make_executor().run(make_fatal, units, policy)
    assert sorted(done) == [("hung", 1), ("other", 0)]


@pytest.mark.slow
def test_unit_that_kills_every_worker_fails_the_job(make_executor: MakeExecutor) -> None:
    executor = make_executor(pool_policy=PoolPolicy(max_attempts=3))
    policy = RetryPolicy(next_attempt=Attempt.next_attempt)
    with pytest.raises(StorageError, match="3 workers in a row failed at one unit"):
        list(executor.run(make_fatal, [Attempt("one", 99)], policy))


def test_wait_for_resources_ends_at_its_timeout(local_ray: None) -> None:
    assert wait_for_resources({"CPU": 1}, 2, "10.0.0.1:6379", 60.0, 0.1)
    assert not wait_for_resources({"CPU": 2}, 2, "10.0.0.1:6379", 1.0, 0.1)
    assert not wait_for_resources({"CPU": 1, "GPU": 1}, 1, None, 60.0, 0.1), (
        "a local Ray cannot grow"
    )


def test_the_failure_that_came_first_is_shown_with_its_traceback() -> None:
    """When one worker fails the others follow, as their connections break."""

    def failed(error: Exception, at: float) -> Exception:
        error.failed_at = at  # type: ignore[attr-defined]
        return error

    failures = {
        0: failed(RuntimeError("Connection reset by peer"), 2.0),
        1: failed(KeyError("label"), 1.0),
    }
    assert isinstance(_first_failure(WorkerGroupError("two failed", failures)), KeyError)
    killed = WorkerHealthCheckFailedError("died", RuntimeError("SIGKILL"))
    assert _first_failure(WorkerGroupError("three failed", {**failures, 2: killed})) is killed
    lost = _first_failure(ControllerError(TimeoutError("no workers")))
    assert isinstance(lost, ShortfallError)
    assert "no workers" in str(lost)
