"""Mark a process as a command or a worker of afinar, and set its memory allocation."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

# Parameters of glibc's mallopt, from <malloc.h>, and the largest value that it takes.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_LARGEST: Final = 2**31 - 1

_is_own = False


def claim_process() -> None:
    """Record that this process runs nobody else's code. `import afinar` alone does not."""
    global _is_own  # noqa: PLW0603  (a process is one command or one worker)
    _is_own = True


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next batch, in a process that `claim_process` claimed.

    glibc asks the kernel for each block of more than 32 MB and gives it back when it is freed. The
    kernel fills every page with zeros again, batch after batch: a third of the time of a network
    whose activations are that large. Call it before the threads that compute start, since a thread
    with an arena of its own gets large blocks from the kernel. Nothing happens without glibc.
    """
    if not _is_own or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    for parameter, value in (
        (_MMAP_THRESHOLD, _LARGEST),
        (_TRIM_THRESHOLD, _LARGEST),
        (_ARENA_MAX, 1),
    ):
        mallopt(parameter, value)
