"""Errors that would recur in every attempt of a training: recorded, never tried again."""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest

from afinar.errors import (
    AfinarError,
    DivergedError,
    IntegrityError,
    NoSpaceError,
    RequestError,
    StorageError,
)
from afinar.execution import train_failure, train_launcher
from afinar.logs import LogSettings
from afinar.training.distributed import Group


@pytest.fixture
def control_service(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return the records of a service of Ray that keeps them in this process."""
    records: dict[str, bytes] = {}

    def put(key: str, value: bytes, overwrite: bool, namespace: str) -> None:
        assert not overwrite
        records.setdefault(key, value)

    monkeypatch.setattr(train_failure, "_internal_kv_put", put)
    monkeypatch.setattr(train_failure, "_internal_kv_get", lambda key, namespace: records.get(key))
    monkeypatch.setattr(train_failure, "_internal_kv_del", lambda key, namespace: records.pop(key))
    return records


RECURRING = [
    (RequestError("wrong"), RequestError),
    (DivergedError("nan"), DivergedError),
    (IntegrityError("damaged"), IntegrityError),
    (NoSpaceError("full"), NoSpaceError),
    (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), NoSpaceError),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), NoSpaceError),
]


def run_worker(error: Exception, monkeypatch: pytest.MonkeyPatch, log: list[Any]) -> None:
    """Run the function of a worker, alone in its group, whose training raises `error`."""

    def train(task: Any, group: Group) -> None:
        log.append(task)
        raise error

    monkeypatch.setattr(train_launcher, "train", train)
    monkeypatch.setattr(train_launcher, "get_device", lambda: "cpu")
    monkeypatch.setattr(train_launcher, "_use_assigned_cores", lambda: None)
    monkeypatch.setattr(train_launcher, "configure_worker_logging", lambda *_, **__: None)

    class Task:
        run = "run"

    options = {"task": Task(), "log": LogSettings(), "failure_key": "key"}
    train_launcher._run_worker(options)


@pytest.mark.parametrize(("error", "kind"), RECURRING)
def test_recurring_error_is_recorded_and_no_second_attempt_trains(
    error: Exception,
    kind: type[AfinarError],
    control_service: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts: list[Any] = []
    run_worker(error, monkeypatch, attempts)
    run_worker(error, monkeypatch, attempts)
    assert len(attempts) == 1
    failure = train_failure.read_failure("key")
    assert type(failure) is kind
    assert str(failure).startswith(str(error) if kind is not NoSpaceError else "")


@pytest.mark.parametrize(
    "error", [StorageError("unreachable"), ConnectionError("reset"), OSError(errno.EIO, "I/O")]
)
def test_other_error_is_raised_for_another_attempt(
    error: Exception, control_service: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(error)):
        run_worker(error, monkeypatch, [])
    assert control_service == {}


class FakeTrainer:
    """Trainer whose `fit` lasts until it is aborted, as Ray Train's does."""

    def __init__(self) -> None:
        self.aborted = threading.Event()

    def abort(self) -> None:
        self.aborted.set()

    def fit(self) -> None:
        assert self.aborted.wait(60)


def test_recorded_error_aborts_the_training_and_is_raised_by_the_driver(
    control_service: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_launcher, "_FAILURE_POLL_S", 0.0)
    train_failure.record_failure("key", NoSpaceError("the disk is full"))
    train_failure.record_failure("key", RequestError("a later one"))
    trainer: Any = FakeTrainer()
    resources: Any = None
    watch = train_launcher._Watch(trainer, "key", resources, timeout_s=1.0)
    with pytest.raises(NoSpaceError, match="the disk is full"):
        train_launcher._fit(trainer, watch)
    assert control_service == {}
