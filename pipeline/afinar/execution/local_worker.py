"""A worker process of this machine: the entry point, and the messages to and from its driver.

The driver starts `python -c "from afinar.execution.local_worker import main; main()" FD`, where FD
is a socket. It sends a Job, then one task after another, and may send another Job when all tasks of
one are done. Before a Job it may send an Import. The worker answers a Job with Ready and a task
with a Result. If the work raises an error, it answers with a Failure and ends. What it prints goes
to a pipe that the driver reads.

Messages are those of multiprocessing's Connection, which pickles them. They travel through a socket
pair that only the driver and this child hold: nothing is read from a disk or a network.
"""

from __future__ import annotations

import copy
import gc
import importlib
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any, Final

from afinar.errors import AfinarError
from afinar.logs import LogSettings, configure_worker_logging
from afinar.units.cores import set_worker_cores
from afinar.units.own_process import claim_process
from afinar.units.pyarrow_setup import forgo_pandas

_DRIVER_ENDED: Final = 1  # exit code


@dataclass(frozen=True)
class Job:
    """The log settings of a job, what makes its function of tasks, and the cores of a worker."""

    log: LogSettings
    make_work: Callable[[], Callable[[Any], Any]]
    cores: int


@dataclass(frozen=True)
class Import:
    """A module that the next job needs. It has no answer."""

    module: str


@dataclass(frozen=True)
class EndOfJob:
    """The job has no more tasks: what its work holds can be freed."""


@dataclass(frozen=True)
class Ready:
    """The worker has made the job's function of tasks."""


@dataclass(frozen=True)
class Result:
    """The result of a task."""

    value: Any


@dataclass(frozen=True)
class Failure:
    """The error that the work raised."""

    error: Exception


def main() -> None:
    """Run the tasks of jobs until the driver closes the socket or dies."""
    connection = Connection(int(sys.argv[1]))
    try:
        claim_process()
        forgo_pandas()
        # Here the modules of the first job are imported. An error in one must reach the driver.
        first = _receive(connection)
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # A thread receives, so that a worker whose driver has died ends at once, also in a task.
        threading.Thread(target=_receive_all, args=(connection, messages), daemon=True).start()
        _run(connection, chain([first], iter(messages.get, None)))
    except Exception as error:  # noqa: BLE001  (the driver raises it)
        _send_failure(connection, error)


def _run(connection: Connection, messages: Iterable[Any]) -> None:
    work: Callable[[Any], Any] | None = None
    for message in messages:
        match message:
            case Job():
                configure_worker_logging(message.log)
                set_worker_cores(message.cores)
                work = message.make_work()
                connection.send(Ready())
            case Import():
                importlib.import_module(message.module)
            case EndOfJob():
                work = None
                gc.collect()
            case Failure():
                raise message.error
            case _:
                assert work is not None, "a task follows its job"
                connection.send(Result(work(message)))


def _receive_all(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            messages.put(_receive(connection))
    except Exception as error:  # noqa: BLE001  (a module of a later job: raised in the main thread)
        messages.put(Failure(error))


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
