"""The executor on a real Ray: bounded, honest about errors, never waiting for workers that cannot come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from afinar.errors import ModelError, RequestError, ShortfallError, StorageError
from afinar.execution.actor_pool import ActorPool
from afinar.execution.executor import RayExecutor, _Worker
from afinar.execution.session import wait_for_resources
from afinar.execution.train_launcher import _first_failure
from afinar.units.executor import RetryPolicy
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError


def double(number: int) -> int:
    return 2 * number


def make_double(offset: int) -> Callable[[int], int]:
    return lambda number: 2 * number + offset


def make_broken() -> Callable[[int], int]:
    raise ModelError("golden samples score differently here")


def refuse(number: int) -> int:
    raise RequestError(f"no {number}")


def crash(number: int) -> int:
    raise ZeroDivisionError(number)


def die_once(flag: Path) -> str:
    if not flag.exists():
        flag.touch()
        os._exit(1)
    return flag.name


def test_every_task_has_one_result(local_ray: None) -> None:
    assert sorted(RayExecutor(None).run(double, range(50))) == [2 * number for number in range(50)]
    assert sorted(RayExecutor(None).run_with_state(partial(make_double, 1), range(50))) == list(
        range(1, 101, 2)
    )


def test_more_actors_than_room_do_not_hang_the_job(local_ray: None) -> None:
    assert sorted(
        RayExecutor(None, workers=5).run_with_state(partial(make_double, 0), range(20))
    ) == list(range(0, 40, 2))


def test_errors_of_ours_come_out_as_themselves(local_ray: None) -> None:
    with pytest.raises(RequestError, match="no 3"):
        list(RayExecutor(None).run(refuse, [3]))
    with pytest.raises(ModelError, match="golden"):
        list(RayExecutor(None).run_with_state(make_broken, [1, 2]))
    with pytest.raises(ZeroDivisionError):
        list(RayExecutor(None).run(crash, [3]))


def make_die_once() -> Callable[[Path], str]:
    return die_once


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_unit_done(local_ray: None, tmp_path: Path) -> None:
    assert sorted(RayExecutor(None).run(die_once, [tmp_path / "a", tmp_path / "b"])) == ["a", "b"]
    assert sorted(
        RayExecutor(None).run_with_state(make_die_once, [tmp_path / "c", tmp_path / "d"])
    ) == ["c", "d"]


def make_dead() -> Callable[[int], int]:
    os._exit(1)


def test_workers_that_die_at_every_start_end_the_job(local_ray: None) -> None:
    with pytest.raises(StorageError, match="3 workers in a row died as they started"):
        list(RayExecutor(None).run_with_state(make_dead, range(10)))


@dataclass(frozen=True)
class Attempt:
    """A unit that dies, or hangs, until it was tried often enough."""

    name: str
    fatal: int
    attempt: int = 0
    hangs: bool = False

    def next_attempt(self) -> Attempt:
        return replace(self, attempt=self.attempt + 1)


def make_fatal() -> Callable[[Attempt], tuple[str, int]]:
    def work(unit: Attempt) -> tuple[str, int]:
        if unit.attempt < unit.fatal:
            time.sleep(3600) if unit.hangs else os._exit(1)
        return unit.name, unit.attempt

    return work


@pytest.mark.slow
def test_a_unit_that_is_lost_is_tried_again_and_knows_how_often_it_was(local_ray: None) -> None:
    units = [Attempt("one", 2), *(Attempt(str(number), 0) for number in range(6))]
    done = dict(
        RayExecutor(None).run_with_state(
            make_fatal, units, RetryPolicy(next_attempt=Attempt.next_attempt)
        )
    )
    assert done.pop("one") == 2
    assert set(done) == {str(number) for number in range(6)}
    assert set(done.values()) == {0}, "a unit that waited behind a lost one was not itself lost"


def test_idle_workers_take_what_a_lost_one_leaves(local_ray: None) -> None:
    """There is no room for another in its place."""
    kind, made = ray.remote(num_cpus=1)(_Worker), list[Any]()

    def make_actor() -> Any:
        made.append(kind if len(made) < 2 else kind.options(resources={"nowhere": 1}))
        return made[-1].remote(make_fatal)

    units = [Attempt("one", 1), Attempt("two", 0)]
    pool = ActorPool(
        make_actor, 2, units, RetryPolicy(next_attempt=Attempt.next_attempt), lambda: None
    )
    assert sorted(pool.results()) == [("one", 1), ("two", 0)]


@pytest.mark.slow
def test_a_worker_that_is_stuck_is_replaced(local_ray: None) -> None:
    units = [Attempt("stuck", 1, hangs=True), Attempt("other", 0)]
    done = RayExecutor(None).run_with_state(
        make_fatal, units, RetryPolicy(deadline_s=lambda _: 3.0, next_attempt=Attempt.next_attempt)
    )
    assert sorted(done) == [("other", 0), ("stuck", 1)]


@pytest.mark.slow
def test_a_unit_that_loses_every_worker_ends_the_job(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afinar.execution.actor_pool._ATTEMPTS", 3)
    with pytest.raises(StorageError, match="lost its worker 3 times"):
        list(
            RayExecutor(None).run_with_state(
                make_fatal, [Attempt("one", 99)], RetryPolicy(next_attempt=Attempt.next_attempt)
            )
        )


def test_a_cluster_without_room_is_not_waited_for_without_end(local_ray: None) -> None:
    assert wait_for_resources({"CPU": 1}, 2, "a cluster's", 60.0, 0.1)
    assert not wait_for_resources({"CPU": 2}, 2, "a cluster's", 1.0, 0.1)
    assert not wait_for_resources({"CPU": 1, "GPU": 1}, 1, None, 60.0, 0.1), (
        "this machine alone will not grow"
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
