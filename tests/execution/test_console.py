"""Tests of the worker output that a driver prints, with batches in the log monitor's format."""

from __future__ import annotations

from typing import Any

import pytest
from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher
from ray._private.worker import print_to_stdstream

from afinar.execution.console import worker_output


def emit(pid: int, *lines: str) -> None:
    batch: dict[str, Any] = {
        "lines": list(lines),
        "pid": pid,
        "ip": "127.0.0.1",
        "localhost": "127.0.0.1",
        "actor_name": "Worker",
        "is_err": True,
    }
    dispatcher.emit(batch)  # type: ignore[no-untyped-call]
    print_to_stdstream(batch, ignore_prefix=False)  # the handler of ray.init, added after ours


def test_only_lines_of_afinar_are_printed_without_a_prefix(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with worker_output(verbose=False):
        emit(1, "core_worker.cc:2465: Actor", "[afinar] epoch 1", "Traceback")
    assert capsys.readouterr().err == "epoch 1\n"


def test_line_that_several_workers_log_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    with worker_output(verbose=False):
        emit(1, "[afinar] note", "[afinar] step")
        emit(2, "[afinar] note")
        emit(1, "[afinar] step")
    assert capsys.readouterr().err == "note\nstep\nstep\n"


def test_line_that_another_worker_logs_later_is_printed_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second worker continues after the first one died: its lines are news."""
    with worker_output(verbose=False):
        emit(1, "[afinar] going on from step 4")
        monkeypatch.setattr("afinar.execution.worker_lines._SAME_LINE_S", 0.0)
        emit(2, "[afinar] going on from step 4")
    assert capsys.readouterr().err == "going on from step 4\n" * 2


def test_verbose_leaves_other_lines_to_ray(capsys: pytest.CaptureFixture[str]) -> None:
    with worker_output(verbose=True):
        emit(7, "[afinar] epoch 1", "raylet: spills objects")
    # The Ray of other tests may print lines of its own, and this one too where it is still up.
    lines = capsys.readouterr().err.splitlines()
    assert "epoch 1" in lines
    ray_lines = [line for line in lines if "raylet: spills objects" in line]
    assert ray_lines and all("(Worker pid=7)" in line for line in ray_lines)
