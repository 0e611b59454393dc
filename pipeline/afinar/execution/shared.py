"""Workers that several jobs of a process share: one Ray, and processes of this machine.

What the first job that needs them starts is kept for the jobs after it, until the block
`share_workers` ends. Imports no ray, so that jobs that need none do not pay for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_stack: contextlib.ExitStack | None = None


@contextlib.contextmanager
def share_workers() -> Iterator[None]:
    """Keep a Ray and the worker processes that jobs start for the jobs after them."""
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
    """Return what ends with the outermost `share_workers`, None outside of one."""
    return _stack
