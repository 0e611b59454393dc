"""A pool of Ray actors that run units; `retry.decide` decides what follows a death or a hang."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError

from afinar.errors import StorageError
from afinar.execution.failures import WORKER_DIED, is_preprocessing_loss, root_cause
from afinar.execution.retry import (
    Action,
    Decision,
    Event,
    PoolPolicy,
    PoolState,
    RunningUnit,
    decide,
)
from afinar.units.executor import RetryPolicy

logger = logging.getLogger(__name__)


@dataclass
class _Unit:
    """A unit: its task, and the references to its result and to its preprocessed blocks.

    `blocks` is None until their preprocessing was started.
    """

    task: Any
    attempts: int = 0
    result: Any = None
    blocks: list[Any] | None = None


@dataclass
class ActorSlot:
    """An actor and the units submitted to it, oldest first; none before `start` is ready."""

    actor: Any
    start: Any
    started: bool = False
    units: deque[_Unit] = field(default_factory=deque)
    first_unit_since: float = 0.0  # time.monotonic()

    def pending(self) -> list[Any]:
        """Return the references to wait for."""
        return [unit.result for unit in self.units] if self.started else [self.start]


class ActorPool:
    """Pool of actors that runs units.

    `make_actor` creates an actor with methods `start()` and `run(task, blocks)`. `size` returns the
    largest number of actors; it is called again whenever an actor has started, since a cluster may
    grow. There are never more actors than units.
    `on_retry` is called for every unit during which an actor died or hung. `blocks_ahead` returns
    the number of blocks that are prepared, or kept for units that are not finished, at a time.
    """

    def __init__(
        self,
        make_actor: Callable[[], Any],
        size: Callable[[], int],
        tasks: Iterable[Any],
        retry_policy: RetryPolicy[Any],
        on_retry: Callable[[], None],
        pool_policy: PoolPolicy | None = None,
        blocks_ahead: Callable[[], int] = lambda: 0,
    ) -> None:
        self._make_actor, self._size, self._blocks_ahead = make_actor, size, blocks_ahead
        self._retry_policy, self._on_retry = retry_policy, on_retry
        self._policy = pool_policy or PoolPolicy()
        self._prepare = ray.remote(
            num_cpus=1,
            max_retries=self._policy.max_block_retries,
            scheduling_strategy="SPREAD",  # over all nodes: decoding limits, not the network
        )(_prepare)
        self._tasks = iter(tasks)
        self._waiting: deque[_Unit] = deque()
        self._slots: list[ActorSlot] = []
        self._dead_starts = self._memory_kills = self._max_blocks = 0
        self._slowest_unit_s = 0.0

    def results(self) -> Iterator[Any]:
        """Yield results in the order in which units finish. To be iterated once.

        Actors for which the cluster has no room get no units, so the job does not wait for them.
        Raises the work's own error; StorageError when no actor starts in time, when several in a
        row die as they start or are killed for memory, or when too many fail at one unit.
        """
        try:
            yield from self._run_units()
        finally:
            # Ray ends an actor without references in up to 30 s, which the next job would wait for.
            for slot in self._slots:
                with suppress(RayError):  # of a cluster that is gone
                    self._stop(slot)
            with suppress(RayError):
                self._cancel(self._waiting)

    def _run_units(self) -> Iterator[Any]:
        self._grow()
        while self._has_work():
            decision = self._decide(Event.BEFORE_WAIT)
            while decision.action is not Action.WAIT:
                self._carry_out(decision)
                decision = self._decide(Event.BEFORE_WAIT)

            pending = [reference for slot in self._slots for reference in slot.pending()]
            ready, _ = ray.wait(pending, num_returns=1, timeout=decision.timeout_s)
            if not ready:
                self._carry_out(self._decide(Event.WAIT_TIMED_OUT))
            for reference in ready:
                yield from self._collect(reference)

    def _grow(self) -> None:
        """Spawn actors up to the pool's size, as long as there is a unit for each."""
        self._max_blocks = self._blocks_ahead()
        missing = self._size() - len(self._slots)
        idle = sum(not slot.units for slot in self._slots)
        wanted = max(0, missing + idle - len(self._waiting))
        self._waiting.extend(map(_Unit, islice(self._tasks, wanted)))
        for _ in range(min(missing, len(self._waiting) - idle)):
            self._slots.append(self._spawn_actor())

    def _spawn_actor(self) -> ActorSlot:
        actor = self._make_actor()
        return ActorSlot(actor, actor.start.remote())

    def _has_work(self) -> bool:
        return any(slot.units for slot in self._slots) or self._has_waiting()

    def _has_waiting(self) -> bool:
        """Return whether a unit waits for an actor; takes the next task if none does."""
        if not self._waiting:
            self._waiting.extend(
                _Unit(task) for task in [next(self._tasks, None)] if task is not None
            )
        return bool(self._waiting)

    def _collect(self, reference: Any) -> Iterator[Any]:
        """Yield the result of a ready reference; nothing for a start or after a death."""
        number = next(
            number for number, slot in enumerate(self._slots) if reference in slot.pending()
        )
        slot = self._slots[number]
        try:
            result = ray.get(reference)
        except OutOfMemoryError:
            decision = self._decide(Event.OUT_OF_MEMORY, number)
            self._memory_kills += 1
            self._carry_out(decision)
            return
        except WORKER_DIED as error:
            self._carry_out(self._decide(Event.ACTOR_DIED, number, str(error)))
            return
        except RayError as error:
            if not is_preprocessing_loss(error):
                raise root_cause(error) from error
            self._carry_out(self._decide(Event.PREPROCESSING_DIED, number))
            return

        is_result = slot.started
        self._on_ready(slot, reference)
        if is_result:
            yield result

    def _on_ready(self, slot: ActorSlot, reference: Any) -> None:
        """Note a start or a finished unit, and submit units to all actors that have room."""
        now = time.monotonic()
        if slot.started:
            slot.units = deque(unit for unit in slot.units if unit.result != reference)
            self._slowest_unit_s = max(self._slowest_unit_s, now - slot.first_unit_since)
            self._memory_kills = 0
        else:
            self._dead_starts = 0
            self._grow()

        slot.started, slot.first_unit_since = True, now
        self._dispatch()

    def _dispatch(self) -> None:
        """Submit waiting units to all started actors with room.

        Every actor gets a first unit before any gets a second, so that idle actors take over the
        units of a dead one if the cluster has no room for its replacement.
        """
        for most in range(1, self._policy.units_per_actor + 1):
            for slot in self._slots:
                if slot.started and len(slot.units) < most and self._fits(slot):
                    self._submit(slot, self._waiting.popleft())
        self._prepare_ahead()

    def _fits(self, slot: ActorSlot) -> bool:
        """Return whether the next waiting unit, if there is one, may join the units of an actor."""
        if not self._has_waiting():
            return False
        if not self._policy.overlaps_units or not slot.units:
            return True
        return not (self._waiting[0].attempts or slot.units[0].attempts)

    def _submit(self, slot: ActorSlot, unit: _Unit) -> None:
        if not slot.units:
            slot.first_unit_since = time.monotonic()
        if unit.blocks is None:
            unit.blocks = self._prepare_blocks(unit)
        unit.result = slot.actor.run.remote(unit.task, unit.blocks)
        slot.units.append(unit)

    def _prepare_ahead(self) -> None:
        """Start the preprocessing of waiting units, so that no core idles and memory is bounded.

        Units differ in size. So blocks are counted, those of running units too, and not units.
        """
        if self._retry_policy.preprocessing is None:
            return
        running = [unit for slot in self._slots for unit in slot.units]
        missing = self._max_blocks - sum(len(unit.blocks or ()) for unit in running)
        for unit in self._iter_waiting():
            if missing <= 0:
                return
            if unit.blocks is None:
                unit.blocks = self._prepare_blocks(unit)
            missing -= len(unit.blocks)

    def _iter_waiting(self) -> Iterator[_Unit]:
        """Yield the waiting units, then further tasks, which then wait, too."""
        yield from list(self._waiting)
        for task in self._tasks:
            self._waiting.append(_Unit(task))
            yield self._waiting[-1]

    def _prepare_blocks(self, unit: _Unit) -> list[Any]:
        """Start the preprocessing of a unit's blocks and return the references to them.

        A retry has none: the actor decodes the pictures itself, which finds the one that kills it.
        """
        preprocessing = self._retry_policy.preprocessing
        if preprocessing is None or unit.attempts:
            return []
        blocks = preprocessing.blocks(unit.task)
        return [self._prepare.remote(preprocessing.prepare, block) for block in blocks]

    def _decide(self, event: Event, slot: int = 0, reason: str = "") -> Decision:
        return decide(event, self._snapshot(), self._policy, slot=slot, reason=reason)

    def _snapshot(self) -> PoolState:
        now = time.monotonic()
        running: list[RunningUnit | None] = []
        for slot in self._slots:
            if slot.units:
                unit = slot.units[0]
                deadline_s = self._retry_policy.deadline_s(unit.task)
                age_s = now - slot.first_unit_since
                running.append(RunningUnit(unit.attempts, deadline_s, age_s))
            else:
                running.append(None)

        return PoolState(running, self._dead_starts, self._memory_kills, self._slowest_unit_s)

    def _carry_out(self, decision: Decision) -> None:
        """Replace a decision's actor and put its units first in the queue; for FAIL, raise."""
        if decision.slot is not None:
            self._stop(self._slots[decision.slot])
        if decision.action is Action.FAIL:
            raise StorageError(decision.message)
        if decision.slot is None:
            return

        logger.info(decision.message)
        units = self._slots[decision.slot].units
        if decision.action is Action.RETRY_UNIT:
            units[0].attempts += 1
            units[0].task = self._retry_policy.next_attempt(units[0].task)
            self._on_retry()
        else:
            self._dead_starts += 1

        self._waiting.extendleft(reversed(units))
        self._slots[decision.slot] = self._spawn_actor()
        self._dispatch()

    def _stop(self, slot: ActorSlot) -> None:
        ray.kill(slot.actor)
        self._cancel(slot.units)

    @staticmethod
    def _cancel(units: Iterable[_Unit]) -> None:
        for unit in units:
            for block in unit.blocks or ():
                # A hung block would occupy its core until the job ends.
                ray.cancel(block, force=True)
            unit.blocks = None


def _prepare(prepare: Callable[[Any], Any], block: Any) -> Any:
    return prepare(block)
