"""A worker process of this machine: the entry point, and the messages to and from its driver.

The driver starts `python -c "from afinar.execution.local_worker import main; main()" FD`, where FD
is a socket. It sends a Start, then one task after another. The worker answers with Ready, then with
a Result for each task, or with a Failure if the work raised an error. What it prints goes to a pipe
that the driver reads.

Messages are pickled, as those of multiprocessing and Ray are. They travel through a socket pair
that only the driver and this child hold. Nothing that is unpickled comes from a disk or a network.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from afinar.errors import AfinarError
from afinar.logs import LogSettings, configure_worker_logging

_DRIVER_ENDED: Final = 1  # exit code


@dataclass(frozen=True)
class Start:
    """First message: the pickled function that makes the work function, and the log settings."""

    make_work: bytes
    log: LogSettings


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
    # A thread receives, so that a worker whose driver has died ends at once, also inside a unit.
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()
    start: Start = tasks.get()
    configure_worker_logging(start.log)
    try:
        # Unpickled here and not on receipt: it imports the job's modules, and an error in one of
        # them must reach the driver as a Failure.
        make_work: Callable[[], Callable[[Any], Any]] = pickle.loads(start.make_work)  # noqa: S301
        work = make_work()
        connection.send(Ready())
        while True:
            connection.send(Result(work(tasks.get())))
    except Exception as error:  # noqa: BLE001  (the driver raises it)
        connection.send(Failure(_transferable(error)))


def _receive(connection: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            tasks.put(connection.recv())
    except (EOFError, OSError):
        os._exit(_DRIVER_ENDED)


def _transferable(error: Exception) -> Exception:
    """Return an error that can be pickled, with the traceback as a note if it is a bug."""
    if not isinstance(error, AfinarError):
        error.add_note(f"in a worker\n{traceback.format_exc()}")
    try:
        # An error whose constructor takes other arguments is pickled and fails in the driver.
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001  (its constructor takes something else than a message)
        copy = RuntimeError(f"{type(error).__name__}: {error}")
        copy.add_note(f"in a worker\n{traceback.format_exc()}")
        return copy
    return error
