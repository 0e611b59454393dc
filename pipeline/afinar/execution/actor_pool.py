"""A pool of actors that carry out units, and what becomes of a unit whose actor is lost, stuck, or never starts."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.exceptions import RayError

from afinar.errors import StorageError
from afinar.execution.failures import WORKER_DIED, is_preprocessing_loss, root_cause
from afinar.units.executor import RetryPolicy
from afinar.units.progress import format_duration

logger = logging.getLogger(__name__)

_AHEAD: Final = (
    2  # units handed to an actor: one running, one waiting, so that none idles between units
)
_START_S: Final = 600.0  # an autoscaler's time to bring a first node
_DEAD_STARTS: Final = 3  # in a row, and more than start at once: then it is no accident
_ATTEMPTS: Final = 50  # at one unit: to find a picture that kills its worker takes three, and two for each further one
_STUCK: Final = (
    20  # times as long as the slowest unit so far, a minute at least: that is no slow picture
)
_STUCK_LEAST_S: Final = 60.0
_BLOCK_ATTEMPTS: Final = 3  # at preparing a block, before its unit is tried without
_SLOWER_AGAIN: Final = (
    5  # times that each further attempt may take: it goes picture by picture, and may just be slow
)


@dataclass
class _Unit:
    task: Any
    attempts: int = 0
    blocks: list[Any] = field(default_factory=list)  # references to what is prepared for it


@dataclass
class ActorSlot:
    """One actor, and the units it was given, in order. `start` is awaited before it is given any."""

    actor: Any
    start: Any
    started: bool = False
    units: deque[tuple[Any, _Unit]] = field(default_factory=deque)
    since: float = 0.0  # when it came to the first of them


class ActorPool:
    """Actors made by `make_actor`, each with a method `start()` and a method `run(task, blocks)`.

    `lost` is called for every unit that has lost its actor.
    """

    def __init__(
        self,
        make_actor: Callable[[], Any],
        size: int,
        tasks: Iterable[Any],
        care: RetryPolicy[Any],
        lost: Callable[[], None],
    ) -> None:
        self._make_actor, self._care, self._lost = make_actor, care, lost
        self._prepare = ray.remote(num_cpus=1, max_retries=_BLOCK_ATTEMPTS)(_prepare)
        self._coming = iter(tasks)
        self._waiting: deque[_Unit] = deque()
        self._dead_starts = 0
        self._slowest_s = 0.0
        self._members = [self._spawn_actor() for _ in range(size)]

    def results(self) -> Iterator[Any]:
        """Results in the order in which units finish.

        An actor that the cluster has no room for is given nothing, so a job never waits for it. Raises the work's own
        error as it is; StorageError when no actor starts in time, several die as they start, or a unit loses its
        actor again and again.
        """
        while self._has_work():
            finished, _ = ray.wait(self._watched(), num_returns=1, timeout=self._wait_timeout_s())
            for reference in finished:
                member = next(one for one in self._members if reference in self._references(one))
                try:
                    result = ray.get(reference)
                except WORKER_DIED as error:
                    self._replace(member, str(error))
                    continue
                except RayError as error:
                    if not is_preprocessing_loss(error):
                        raise root_cause(error) from error
                    self._replace(member, "what prepares its pictures died again and again")
                    continue
                self._on_ready(member, reference)
                if reference != member.start:
                    yield result
            if not finished and not any(member.units for member in self._members):
                raise StorageError(
                    f"no worker could be started in {_START_S:.0f} s: the cluster has no room for any"
                )
            self._replace_stuck()

    def _has_work(self) -> bool:
        return bool(self._waiting) or any(member.units for member in self._members) or self._fetch()

    def _fetch(self) -> bool:
        self._waiting.extend(_Unit(task) for task in [next(self._coming, None)] if task is not None)
        return bool(self._waiting)

    def _spawn_actor(self) -> ActorSlot:
        actor = self._make_actor()
        return ActorSlot(actor, actor.start.remote())

    def _watched(self) -> list[Any]:
        return [reference for member in self._members for reference in self._references(member)]

    @staticmethod
    def _references(member: ActorSlot) -> list[Any]:
        return [reference for reference, _ in member.units] if member.started else [member.start]

    def _on_ready(self, member: ActorSlot, reference: Any) -> None:
        """What was waited for has come: units for whoever has room now."""
        now = time.monotonic()
        if member.started:
            member.units = deque(one for one in member.units if one[0] != reference)
            self._slowest_s = max(self._slowest_s, now - member.since)
        member.started, self._dead_starts, member.since = True, 0, now
        self._dispatch()

    def _dispatch(self) -> None:
        """Give units to all that have started and have room: to each its first before a second to any.

        So idle actors take what a lost one leaves, should there be no room for another in its place.
        """
        for most in range(1, _AHEAD + 1):
            for member in self._members:
                if member.started and len(member.units) < most and (self._waiting or self._fetch()):
                    self._submit(member, self._waiting.popleft())

    def _submit(self, member: ActorSlot, unit: _Unit) -> None:
        if not member.units:
            member.since = time.monotonic()
        unit.blocks = self._blocks(unit)
        member.units.append((member.actor.run.remote(unit.task, unit.blocks), unit))

    def _blocks(self, unit: _Unit) -> list[Any]:
        """References to the unit's blocks, whose preparation begins now. Another attempt prepares for itself, so that
        a picture that kills is found."""
        if self._care.preprocessing is None or unit.attempts:
            return []
        preprocessing = self._care.preprocessing
        return [
            self._prepare.remote(preprocessing.prepare, block)
            for block in preprocessing.blocks(unit.task)
        ]

    def _wait_timeout_s(self) -> float:
        """Seconds until the first unit is to be taken for stuck; an actor's time to start where there is none."""
        ends = [
            member.since + self._limit_s(member.units[0][1])
            for member in self._members
            if member.units
        ]
        return max(0.1, min(ends) - time.monotonic()) if ends else _START_S

    def _limit_s(self, unit: _Unit) -> float:
        deadline_s = self._care.deadline_s(unit.task)
        usual_s = max(_STUCK_LEAST_S, _STUCK * self._slowest_s) if self._slowest_s else deadline_s
        more = float(_SLOWER_AGAIN**unit.attempts)
        return min(deadline_s * min(more, _SLOWER_AGAIN), usual_s * more)

    def _replace_stuck(self) -> None:
        now = time.monotonic()
        for member in list(self._members):
            if member.units and now - member.since > self._limit_s(member.units[0][1]):
                self._replace(
                    member, f"it was stuck in one unit for {format_duration(now - member.since)}"
                )

    def _replace(self, member: ActorSlot, why: str) -> None:
        """Put a new actor in the place of one that is lost, and its units before those that wait."""
        if not member.started:
            self._dead_starts += 1
            if self._dead_starts >= _DEAD_STARTS and self._dead_starts > len(self._members):
                raise StorageError(
                    f"{self._dead_starts} workers in a row died as they started; the last: {why}"
                )
        ray.kill(member.actor)
        units = [unit for _, unit in member.units]
        for block in [block for unit in units for block in unit.blocks]:
            ray.cancel(block, force=True)  # one that hangs would keep its core until the job ends
        if units:
            first = units[0]
            self._lost()
            first.attempts, first.task = first.attempts + 1, self._care.next_attempt(first.task)
            if first.attempts >= _ATTEMPTS:
                raise StorageError(
                    f"one unit of work lost its worker {_ATTEMPTS} times; the last time: {why}"
                )
        logger.info(f"a worker was lost and is replaced: {why.splitlines()[0]}")
        self._waiting.extendleft(reversed(units))
        self._members[self._members.index(member)] = self._spawn_actor()
        self._dispatch()


def _prepare(prepare: Callable[[Any], Any], block: Any) -> Any:
    return prepare(block)
