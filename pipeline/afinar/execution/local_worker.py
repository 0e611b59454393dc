"""A worker process of this machine: the entry point, and the messages to and from its driver.

The driver starts `python -c "from afinar.execution.local_worker import main; main()" FD`, where FD
is a socket. It sends the log settings, the function that makes the work, then one task after
another. The worker answers with Ready, then with a Result for each task, or with a Failure if the
work raised an error. What it prints goes to a pipe that the driver reads.

Messages are those of multiprocessing's Connection, which pickles them. They travel through a socket
pair that only the driver and this child hold: nothing is read from a disk or a network.
"""

from __future__ import annotations

import copy
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from afinar.errors import AfinarError
from afinar.logs import configure_worker_logging

_DRIVER_ENDED: Final = 1  # exit code


@dataclass(frozen=True)
class Ready:
    """The worker has made its function of units."""


@dataclass(frozen=True)
class Result:
    """The result of a task."""

    value: Any


@dataclass(frozen=True)
class Failure:
    """The error that the work raised."""

    error: Exception


def main() -> None:
    """Run units until the driver closes the socket or dies."""
    connection = Connection(int(sys.argv[1]))
    try:
        configure_worker_logging(_receive(connection))
        # The job's modules are imported here. An error in one of them must reach the driver.
        make_work: Callable[[], Callable[[Any], Any]] = _receive(connection)
        # A thread receives tasks, so that a worker whose driver has died ends at once, also inside
        # a unit.
        tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_receive_all, args=(connection, tasks), daemon=True).start()
        work = make_work()
        connection.send(Ready())
        while True:
            connection.send(Result(work(tasks.get())))
    except Exception as error:  # noqa: BLE001  (the driver raises it)
        _send_failure(connection, error)


def _receive_all(connection: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    while True:
        tasks.put(_receive(connection))


def _receive(connection: Connection) -> Any:
    """Return the next message; end this process if the driver has closed the socket or died."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        os._exit(_DRIVER_ENDED)


def _send_failure(connection: Connection, error: Exception) -> None:
    """Send an error, with the traceback as a note if it is a bug."""
    if not isinstance(error, AfinarError):
        error.add_note(f"in a worker\n{traceback.format_exc()}")
    try:
        # The driver makes the error anew, as a copy does. That fails if its constructor takes
        # something else than a message.
        copy.copy(error)
        connection.send(Failure(error))
    except Exception:  # noqa: BLE001  (nothing was sent: the error cannot be copied or pickled)
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(f"in a worker\n{traceback.format_exc()}")
        connection.send(Failure(plain))
