"""The executor on a real Ray: bounded, honest about errors, never waiting for workers that cannot come."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.errors import ModelError, RequestError, ShortfallError
from pipeline.execution.executor import RayExecutor
from pipeline.execution.session import request_room
from pipeline.execution.train import _first_failure


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
    assert sorted(RayExecutor(None).run_with_state(partial(make_double, 1), range(50))) == list(range(1, 101, 2))


def test_more_actors_than_room_do_not_hang_the_job(local_ray: None) -> None:
    assert sorted(RayExecutor(None, workers=5).run_with_state(partial(make_double, 0), range(20))) == list(
        range(0, 40, 2)
    )


def test_errors_of_ours_come_out_as_themselves(local_ray: None) -> None:
    with pytest.raises(RequestError, match="no 3"):
        list(RayExecutor(None).run(refuse, [3]))
    with pytest.raises(ModelError, match="golden"):
        list(RayExecutor(None).run_with_state(make_broken, [1, 2]))
    with pytest.raises(ZeroDivisionError):
        list(RayExecutor(None).run(crash, [3]))


def make_die_once() -> Callable[[Path], str]:
    return die_once


def test_a_worker_that_dies_is_replaced_and_its_unit_done(local_ray: None, tmp_path: Path) -> None:
    assert sorted(RayExecutor(None).run(die_once, [tmp_path / "a", tmp_path / "b"])) == ["a", "b"]
    assert sorted(RayExecutor(None).run_with_state(make_die_once, [tmp_path / "c", tmp_path / "d"])) == ["c", "d"]


def test_a_cluster_without_room_is_not_waited_for_without_end(local_ray: None) -> None:
    assert request_room({"CPU": 1}, 2, "a cluster's", 60.0, 0.1)
    assert not request_room({"CPU": 2}, 2, "a cluster's", 1.0, 0.1)
    assert not request_room({"CPU": 1, "GPU": 1}, 1, None, 60.0, 0.1), "this machine alone will not grow"


def test_the_failure_that_came_first_is_shown_with_its_traceback() -> None:
    """When one worker fails the others follow, as their connections break."""

    def failed(error: Exception, at: float) -> Exception:
        error.failed_at = at  # type: ignore[attr-defined]
        return error

    failures = {0: failed(RuntimeError("Connection reset by peer"), 2.0), 1: failed(KeyError("label"), 1.0)}
    assert isinstance(_first_failure(WorkerGroupError("two failed", failures)), KeyError)
    killed = WorkerHealthCheckFailedError("died", RuntimeError("SIGKILL"))
    assert _first_failure(WorkerGroupError("three failed", {**failures, 2: killed})) is killed
    lost = _first_failure(ControllerError(TimeoutError("no workers")))
    assert isinstance(lost, ShortfallError)
    assert "no workers" in str(lost)
