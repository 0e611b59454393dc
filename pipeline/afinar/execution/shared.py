"""One Ray for several jobs of a process: started by the first that needs it, ended by the last.

Imports no ray, so that jobs that need none do not pay for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_stack: contextlib.ExitStack | None = None


@contextlib.contextmanager
def share_ray() -> Iterator[None]:
    """Keep a Ray that a job starts, or connects to, for the jobs after it, until the block ends."""
    global _stack  # noqa: PLW0603  (a process has one Ray at most)
    if _stack is not None:
        yield
        return
    with contextlib.ExitStack() as stack:
        _stack = stack
        try:
            yield
        finally:
            _stack = None


def shared_stack() -> contextlib.ExitStack | None:
    """Return what ends with the outermost `share_ray`, None outside of one."""
    return _stack
