"""Failures of a training: errors that recur in every attempt, and the policy of retries.

Only errors that may pass are tried again: a dead worker, an unreachable store, and failures of
collective operations, which follow from them. A worker records any other error, Ray Train ends the
training, and the driver raises the recorded error. The record is kept by Ray's control service, not
in the model's store, which may be what failed.
"""

from __future__ import annotations

import json
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from ray.exceptions import RayError
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from afinar.errors import AfinarError
from afinar.execution import train_errors
from afinar.execution.train_errors import recurring_error
from afinar.storage.records import as_record, parse_object

_NAMESPACE: Final = "afinar"


class WorkerError(Exception):
    """A worker raised an exception that is a bug. A note holds the worker's traceback."""


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """Record of an error: its class and message, and, if it is a bug, its traceback."""

    kind: str
    message: str
    traceback: str = ""


def new_failure_key() -> str:
    """Return a key for the failure of one launch of a training."""
    return f"train-failure-{uuid.uuid4().hex}"


def is_transient(error: BaseException) -> bool:
    """Return True for errors after which another attempt may succeed, those of Ray among them."""
    return isinstance(error, RayError) or train_errors.is_transient(error)


def record_failure(key: str, error: Exception) -> None:
    """Record an error that is not transient, unless another worker has recorded one.

    It is recorded as `recurring_error` returns it; a bug with its traceback.
    """
    recurring = recurring_error(error)
    failure = _Failure(
        kind=type(recurring or error).__name__,
        message=str(recurring or error),
        traceback="" if recurring else "".join(traceback.format_exception(error)),
    )
    _internal_kv_put(key, json.dumps(asdict(failure)).encode(), False, namespace=_NAMESPACE)


def read_failure(key: str) -> AfinarError | WorkerError | None:
    """Return the recorded error, None if there is none.

    An error of a class that is not in `afinar.errors` becomes an AfinarError, a bug a WorkerError.
    """
    record = _internal_kv_get(key, namespace=_NAMESPACE)
    if not record:
        return None
    uri = "the failure of a training"
    failure = as_record(parse_object(record, uri), _Failure, uri)
    if failure.traceback:
        bug = WorkerError(f"{failure.kind}: {failure.message}")
        bug.add_note(failure.traceback)
        return bug
    classes = {kind.__name__: kind for kind in _subclasses(AfinarError)}
    return classes.get(failure.kind, AfinarError)(failure.message)


def _subclasses(kind: type[AfinarError]) -> Iterator[type[AfinarError]]:
    for subclass in kind.__subclasses__():
        if subclass.__module__ == AfinarError.__module__:
            yield subclass
            yield from _subclasses(subclass)


def record_start(key: str) -> None:
    """Record that the workers of a launch have found room and run."""
    _internal_kv_put(f"{key}-started", b"1", False, namespace=_NAMESPACE)


def has_started(key: str) -> bool:
    """Return True if the workers of a launch have run."""
    return bool(_internal_kv_get(f"{key}-started", namespace=_NAMESPACE))


def delete_failure(key: str) -> None:
    """Delete the records of a launch that has ended."""
    for name in (key, f"{key}-started"):
        _internal_kv_del(name, namespace=_NAMESPACE)


class TrainFailurePolicy(DefaultFailurePolicy):
    """Failure policy of Ray Train that tries only transient errors again.

    Workers that find no room are started again without limit: the driver decides how long a
    training waits. Other failures are retried as often as `config` says.
    """

    def __init__(self, config: FailureConfig, failure_key: str) -> None:
        super().__init__(config)
        self._failure_key = failure_key

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return whether the workers are started again."""
        cause = getattr(training_failed_error, "controller_failure", None)
        if isinstance(cause, WorkerGroupStartupTimeoutError):
            return FailureDecision.RETRY
        if read_failure(self._failure_key) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)
