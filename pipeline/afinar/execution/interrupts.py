"""Signal handlers while Ray starts: Ray's own would end the process with a trace."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Final

from ray._private import utils

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Keep this process's handlers of SIGINT, SIGTERM and SIGHUP; for a block with `ray.init`.

    Ray installs handlers of SIGTERM, in Python (they exit with 1 or 15) and in C++ (it prints a
    trace of the stack and aborts). A handler that is set again after the block replaces both. In a
    process without a handler of its own for SIGTERM, Ray's stay: they end Ray's processes.
    """
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or handlers[signal.SIGTERM] in {None, signal.SIG_DFL}:
        yield
        return

    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        for number, handler in handlers.items():
            signal.signal(number, handler)
