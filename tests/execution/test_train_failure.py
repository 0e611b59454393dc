"""Errors that would recur in every attempt of a training: recorded, never tried again."""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.config import FailureConfig
from torch._inductor.exc import InductorError

from afinar.errors import (
    AfinarError,
    DivergedError,
    IntegrityError,
    NoSpaceError,
    RequestError,
    StorageError,
)
from afinar.execution import train_errors, train_failure, train_launcher
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
    monkeypatch.setattr(
        train_failure, "_internal_kv_del", lambda key, namespace: records.pop(key, None)
    )
    return records


def inductor_error(cause: Exception) -> Exception:
    return InductorError(cause, None)


RECURRING = [
    (RequestError("wrong"), RequestError),
    (DivergedError("nan"), DivergedError),
    (IntegrityError("damaged"), IntegrityError),
    (NoSpaceError("full"), NoSpaceError),
    (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), NoSpaceError),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), NoSpaceError),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RequestError),
    (RuntimeError("[…] DefaultCPUAllocator: can't allocate memory: you tried …"), RequestError),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …"), RequestError),
    (MemoryError(), RequestError),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), RequestError),
    (inductor_error(RuntimeError("no C++ compiler")), RequestError),
]
REMEDIES = {
    "out of memory": "give a smaller --batch-size, or --accumulate 2",
    "compiler": "leave out --compile",
    "full disk": "Free some and run again",
    "weights": "--weights file: no file of weights",
}
CAUSES: dict[str, Exception] = {
    "out of memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "compiler": inductor_error(RuntimeError("no C++ compiler")),
    "full disk": OSError(errno.ENOSPC, "No space left on device", "/models/x"),
    "weights": RequestError("--weights file: no file of weights"),
}


def run_worker(error: Exception, monkeypatch: pytest.MonkeyPatch, log: list[Any]) -> None:
    """Run the function of a worker, alone in its group, whose training raises `error`."""

    def train(task: Any, group: Group, hooks: Any) -> None:
        log.append(task)
        raise error

    monkeypatch.setattr(train_launcher, "run_worker", train)
    monkeypatch.setattr(train_launcher, "get_device", lambda: "cpu")
    monkeypatch.setattr(train_launcher, "_use_assigned_cores", lambda: None)
    monkeypatch.setattr(train_launcher, "configure_worker_logging", lambda *_, **__: None)

    class Task:
        run = "run"

    options = {
        "task": Task(),
        "log": LogSettings(),
        "failure_key": "key",
        "should_stop": lambda _: False,
    }
    with pytest.raises(type(error)):
        train_launcher._run_worker(options)


def decide(error: Exception) -> FailureDecision:
    """Return what Ray Train does about a failure of a worker, or of its controller."""
    policy = train_failure.TrainFailurePolicy(FailureConfig(max_failures=1), "key")
    is_of_controller = isinstance(error, WorkerGroupStartupTimeoutError)
    failure: Any = ControllerError(error) if is_of_controller else WorkerGroupError("", {0: error})
    return policy.make_decision(failure)


@pytest.mark.parametrize(("error", "kind"), RECURRING)
def test_recurring_error_is_recorded_and_not_tried_again(
    error: Exception,
    kind: type[AfinarError],
    control_service: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_worker(error, monkeypatch, [])
    assert decide(error) is FailureDecision.RAISE
    failure = train_failure.read_failure("key")
    assert type(failure) is kind
    assert str(failure).startswith(str(error) if isinstance(error, AfinarError) else "")


@pytest.mark.parametrize("name", CAUSES)
def test_recurring_error_is_one_sentence_with_its_remedy(name: str) -> None:
    error = train_errors.recurring_error(CAUSES[name])
    assert REMEDIES[name] in str(error)
    assert "\n" not in str(error)
    assert getattr(error, "exit_code", None) == (1 if name == "full disk" else 2)


def test_memory_that_runs_out_while_compiling_is_not_an_error_of_the_compiler() -> None:
    error = train_errors.recurring_error(inductor_error(MemoryError()))
    assert "--batch-size" in str(error)


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"


@pytest.mark.parametrize(
    "error",
    [
        StorageError("unreachable"),
        ConnectionError("reset"),
        OSError(errno.EIO, "I/O"),
        RuntimeError(GLOO),
        dist.DistBackendError("NCCL error"),
        ActorDiedError(),
    ],
)
def test_transient_error_is_tried_again(
    error: Exception, control_service: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_worker(error, monkeypatch, [])
    assert "key" not in control_service
    assert decide(error) is FailureDecision.RETRY


@pytest.mark.parametrize("error", [KeyError("label"), RuntimeError("shapes"), PermissionError()])
def test_bug_is_not_tried_again_and_shows_its_traceback(
    error: Exception, control_service: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_worker(error, monkeypatch, [])
    assert decide(error) is FailureDecision.RAISE
    failure = train_failure.read_failure("key")
    assert isinstance(failure, train_failure.WorkerError)
    assert str(failure).startswith(type(error).__name__)
    assert "raise error" in "".join(failure.__notes__)


def test_workers_without_room_are_started_again_without_limit(
    control_service: dict[str, bytes],
) -> None:
    policy = train_failure.TrainFailurePolicy(FailureConfig(controller_failure_limit=1), "key")
    error: Any = ControllerError(WorkerGroupStartupTimeoutError(num_workers=2))
    assert {policy.make_decision(error) for _ in range(20)} == {FailureDecision.RETRY}


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
