"""The cores of a worker process."""

from __future__ import annotations

_cores = 0


def worker_cores() -> int:
    """Return the cores that this worker may use; 0 in a process that no executor has started.

    Such a process runs units in turn, and may use whatever it may use otherwise.
    """
    return _cores


def set_worker_cores(cores: int) -> None:
    """Set the cores of this process, before its work is made."""
    global _cores  # noqa: PLW0603  (a process is one worker)
    _cores = cores
