"""What Ray's errors say: that a worker is gone, or what its work raised."""

from __future__ import annotations

from typing import Final

from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from afinar.errors import AfinarError, StorageError

WORKER_DIED: Final = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError)
"""A worker is gone; its work may be right."""


def is_preprocessing_loss(error: BaseException) -> bool:
    """Whether a worker met this as it waited for what another was to prepare."""
    return isinstance(error, RayTaskError) and isinstance(error.cause, WORKER_DIED)


def root_cause(error: BaseException) -> Exception:
    """The AfinarError at the bottom of an error of Ray's; else the task's own error, or that a worker was lost."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None or (isinstance(seen, AfinarError) and not isinstance(seen, RayTaskError)):
            break
        seen = getattr(seen, "cause", None) or seen.__cause__
    if isinstance(seen, AfinarError):
        return seen
    if isinstance(error, WORKER_DIED):
        return StorageError(f"a worker was lost and could not be replaced: {error}")
    return error if isinstance(error, Exception) else RuntimeError(str(error))
