"""A pool of processes of this machine that run units, without Ray.

It starts in the time that Python needs for its imports. `retry.decide` decides what follows a death
or a hang, as for `actor_pool.ActorPool`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO, Any, Final

from afinar.errors import StorageError
from afinar.execution.local_worker import EndOfJob, Failure, Import, Job, Ready, Result
from afinar.execution.retry import (
    Action,
    Decision,
    Event,
    PoolPolicy,
    PoolState,
    RunningUnit,
    decide,
)
from afinar.execution.shared import shared_stack
from afinar.execution.worker_lines import WorkerLines
from afinar.logs import log_settings
from afinar.units.executor import RetryPolicy

logger = logging.getLogger(__name__)

# With -P the current folder is not searched for modules: a user's random.py in it would be imported
# instead of Python's.
_COMMAND: Final = (
    *(sys.executable, "-P", "-c"),
    "from afinar.execution.local_worker import main; main()",
)
_END_S: Final = 5.0  # of a process that has closed its socket
_READ_BYTES: Final = 1 << 16
_MAX_KEPT: Final = 3  # idle processes


class LocalProcess:
    """A worker process, its socket, and the pipe of what it prints."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                # A worker has one core. Ray sets the same default.
                env={"OMP_NUM_THREADS": "1", **os.environ},
                # Ctrl-C is for the driver, which ends its workers.
                process_group=0,
            )
        self.connection = Connection(ours.detach())
        assert self._process.stdout is not None, "it is a pipe"
        self.output: IO[bytes] = self._process.stdout
        os.set_blocking(self.output.fileno(), False)
        self._partial_line = b""

    @property
    def name(self) -> str:
        """Name of the process in `WorkerLines`."""
        return str(self._process.pid)

    def send(self, message: Any) -> None:
        """Send a message; to a process that has died it is lost."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def receive(self) -> Any:
        """Return the next message; None if the process has died."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def read_lines(self) -> list[str]:
        """Return the lines that the process has printed since the last call."""
        text = self._partial_line
        while not self.output.closed:
            try:
                data = os.read(self.output.fileno(), _READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                self.output.close()
            text += data
        *lines, self._partial_line = text.split(b"\n")
        return [line.decode(errors="backslashreplace") for line in lines]

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def exit_code(self) -> int:
        """Return the exit code of a process that has closed its socket; -N after signal N."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_END_S)
        self._process.kill()
        return self._process.wait()

    def kill(self) -> None:
        """End the process and close what this process holds of it."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self.output.close()


class _IdleProcesses:
    """Worker processes that have ended their job, kept for the next one of this process."""

    def __init__(self) -> None:
        self._idle: list[LocalProcess] = []

    def take(self) -> LocalProcess:
        """Return the process that was kept last; start one if there is none."""
        while self._idle:
            process = self._idle.pop()
            if process.is_running:
                return process
            process.kill()
        return LocalProcess()

    def keep(self, process: LocalProcess) -> None:
        """Keep a process within `share_workers`; outside of it, end the process.

        With torch a process has 400 MB, and most jobs of few pictures take one: few are kept.
        """
        stack = shared_stack()
        if stack is None:
            process.kill()
            return
        process.send(EndOfJob())
        self._idle.append(process)
        if len(self._idle) > _MAX_KEPT:
            self._idle.pop(0).kill()
        stack.callback(self._end)

    def _end(self) -> None:
        while self._idle:
            self._idle.pop().kill()


_idle = _IdleProcesses()


@contextlib.contextmanager
def prepared_process(module: str) -> Iterator[None]:
    """Let a process import a module beside the job of the block; the job after it takes it first.

    Nothing is prepared for an empty name, or outside of `share_workers`. An import of torch takes
    1.5 s.
    """
    if not module or shared_stack() is None:
        yield
        return
    process = LocalProcess()
    process.send(Import(module))
    try:
        yield
    finally:
        _idle.keep(process)


@dataclass
class _Unit:
    """A unit: its task, and the attempts that failed."""

    task: Any
    attempts: int = 0


@dataclass
class _Slot:
    """A process and the unit that it runs."""

    process: LocalProcess
    ready: bool = False
    unit: _Unit | None = None
    since: float = 0.0  # time.monotonic() of the unit's start


class ProcessPool:
    """Pool of at most `size` processes that run units.

    There are never more processes than units; each has `cores` cores. `make_work` and the tasks are
    pickled. Within `share_workers` a job takes the processes that earlier jobs have left, and
    leaves its own.
    """

    def __init__(
        self,
        make_work: Callable[[], Any],
        size: int,
        tasks: Iterable[Any],
        retry_policy: RetryPolicy[Any],
        pool_policy: PoolPolicy | None = None,
        cores: int = 1,
    ) -> None:
        self._job = Job(log_settings(), make_work, cores)
        self._waiting = deque(map(_Unit, tasks))
        self._size = min(size, len(self._waiting))
        self._retry_policy, self._policy = retry_policy, pool_policy or PoolPolicy()
        self._slots: list[_Slot] = []
        self._lines = WorkerLines()
        self._dead_starts = self._kills = 0
        self._slowest_unit_s = 0.0

    def results(self) -> Iterator[Any]:
        """Yield results in the order in which units finish. To be iterated once.

        Raises the work's own error; StorageError when no process starts in time, when several in a
        row die as they start or are killed, or when too many fail at one unit.
        """
        try:
            for _ in range(self._size):
                self._slots.append(self._start())
            yield from self._run_units()
        finally:
            for slot in self._slots:
                if slot.ready and slot.unit is None:
                    _idle.keep(slot.process)
                else:
                    slot.process.kill()

    def _start(self) -> _Slot:
        process = _idle.take()
        process.send(self._job)
        return _Slot(process)

    def _run_units(self) -> Iterator[Any]:
        while self._waiting or any(slot.unit for slot in self._slots):
            decision = self._decide(Event.BEFORE_WAIT)
            while decision.action is not Action.WAIT:
                self._carry_out(decision)
                decision = self._decide(Event.BEFORE_WAIT)

            sources: dict[Any, _Slot] = {slot.process.connection: slot for slot in self._slots}
            outputs: dict[Any, _Slot] = {
                slot.process.output: slot for slot in self._slots if not slot.process.output.closed
            }
            ready = wait([*sources, *outputs], decision.timeout_s)
            if not ready:
                self._carry_out(self._decide(Event.WAIT_TIMED_OUT))
            for source in ready:
                if source in outputs:
                    self._print_output(outputs[source].process)
                else:
                    yield from self._collect(sources[source])

    def _collect(self, slot: _Slot) -> Iterator[Any]:
        """Yield the result that a process has sent; nothing for a start or after a death."""
        message = slot.process.receive()
        self._print_output(slot.process)
        match message:
            case Failure():
                raise message.error
            case Ready():
                slot.ready, self._dead_starts = True, 0
            case Result():
                self._slowest_unit_s = max(self._slowest_unit_s, time.monotonic() - slot.since)
                slot.unit, self._kills = None, 0
            case _:
                self._replace_dead(slot)
                return

        self._dispatch()
        if isinstance(message, Result):
            yield message.value

    def _replace_dead(self, slot: _Slot) -> None:
        """Carry out what follows the death of a process."""
        number, code = self._slots.index(slot), slot.process.exit_code()
        if code == -signal.SIGKILL:
            reason = "it was killed (SIGKILL), as the system does when memory is full"
            decision = self._decide(Event.OUT_OF_MEMORY, number, reason)
            self._kills += 1
        else:
            reason = f"it ended with exit code {code}"
            if code < 0:
                reason = f"it was ended by {signal.Signals(-code).name}"
            decision = self._decide(Event.ACTOR_DIED, number, reason)
        self._carry_out(decision)

    def _dispatch(self) -> None:
        """Send waiting units to all processes that are ready and have none."""
        for slot in self._slots:
            if slot.ready and slot.unit is None and self._waiting:
                slot.unit, slot.since = self._waiting.popleft(), time.monotonic()
                slot.process.send(slot.unit.task)

    def _decide(self, event: Event, slot: int = 0, reason: str = "") -> Decision:
        return decide(event, self._snapshot(), self._policy, slot=slot, reason=reason)

    def _snapshot(self) -> PoolState:
        now = time.monotonic()
        running: list[RunningUnit | None] = []
        for slot in self._slots:
            if slot.unit is None:
                running.append(None)
            else:
                deadline_s = self._retry_policy.deadline_s(slot.unit.task)
                running.append(RunningUnit(slot.unit.attempts, deadline_s, now - slot.since))
        return PoolState(running, self._dead_starts, self._kills, self._slowest_unit_s)

    def _carry_out(self, decision: Decision) -> None:
        """Replace a decision's process and put its unit first in the queue; for FAIL, raise."""
        if decision.action is Action.FAIL:
            raise StorageError(decision.message)
        if decision.slot is None:
            return

        logger.info(decision.message)
        slot = self._slots[decision.slot]
        slot.process.kill()
        if slot.unit is None:
            self._dead_starts += 1
        else:
            unit = slot.unit
            unit.attempts, unit.task = unit.attempts + 1, self._retry_policy.next_attempt(unit.task)
            self._waiting.appendleft(unit)
        self._slots[decision.slot] = self._start()
        self._dispatch()

    def _print_output(self, process: LocalProcess) -> None:
        """Print what a process has logged; all that it has printed if debug messages are shown."""
        foreign_lines = self._lines.print_log(process.name, process.read_lines())
        if self._job.log.verbose:
            for line in foreign_lines:
                print(line, file=sys.stderr, flush=True)  # noqa: T201
