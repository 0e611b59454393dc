"""Classification of Ray's errors: a process died, or the work raised."""

from __future__ import annotations

import re
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
"""Errors after which a unit can be retried: its process died, and its work did not raise."""

TOKEN_ADVICE: Final = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
)
_MAX_CAUSES: Final = 10
_ADVICE: Final = re.compile(r"\s(?:Note: RAY_AUTH|Ensure that the token|Create a token file)")


def is_preprocessing_loss(error: BaseException) -> bool:
    """Return whether a unit failed because the process that preprocessed its blocks died."""
    return isinstance(error, RayTaskError) and isinstance(error.cause, WORKER_DIED)


def root_cause(error: BaseException) -> Exception:
    """Return the AfinarError in the chain of causes of one of Ray's errors.

    Without one: a StorageError if a worker died, else the error itself.
    """
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        # Ray's copy of an AfinarError derives from RayTaskError and from the original's class.
        if isinstance(cause, AfinarError) and not isinstance(cause, RayTaskError):
            return cause
        if cause is None:
            break
        cause = getattr(cause, "cause", None) or cause.__cause__

    if isinstance(error, WORKER_DIED):
        return StorageError(f"a worker died and could not be replaced: {error}")
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or its class.

    Ray's errors of authentication go on with advice that afinar gives itself, in fewer words.
    """
    text = _ADVICE.split(str(error).strip())[0]
    return text.splitlines()[0].rstrip(". ") if text else type(error).__name__
