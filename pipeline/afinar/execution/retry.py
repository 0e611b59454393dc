"""Decisions of a pool of workers: wait, replace an actor, retry its unit, or end the job.

Pure functions of a snapshot of the pool: nothing here imports Ray or reads a clock.
`actor_pool.ActorPool`, whose actors are Ray's, and `process_pool.ProcessPool`, whose actors are
processes of this machine, take the snapshots and carry the decisions out. What a job contributes
(its deadline per unit, the task of the next attempt) is in `units.executor.RetryPolicy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from afinar.units.progress import format_duration


@dataclass(frozen=True, kw_only=True)
class PoolPolicy:
    """Limits of an actor pool. The defaults suit every job; tests set other values."""

    units_per_actor: int = 2
    """Units submitted to an actor: one runs, one is queued, so that it does not idle in between."""
    overlaps_units: bool = False
    """Actors run several units at once. A retried unit is then alone in its actor, so that another
    unit's picture cannot kill it."""
    start_timeout_s: float = 600.0
    """Longest wait for a first actor to start. An autoscaler needs minutes for its first node."""
    max_dead_starts: int = 3
    """Actors in a row that die while they start. The job fails at this many, if they are also more
    than the pool has slots: all slots start at once, and one broken node must not end the job."""
    max_memory_kills: int = 8
    """Actors in a row that are killed because their machine's memory is full, without a finished
    unit in between. The job fails at this many, if they are also more than the pool has slots."""
    max_attempts: int = 50
    """Attempts at one unit. To find a picture that kills its worker takes 3, each further one 2."""
    slowest_factor: float = 20.0
    """A unit is hung after this many times the seconds of the slowest finished unit ..."""
    min_limit_s: float = 60.0
    """... but never before this many seconds."""
    retry_factor: float = 5.0
    """The limit of each further attempt is this many times longer: it goes picture by picture, and
    may be slow rather than hung."""
    max_block_retries: int = 3
    """Retries of the preprocessing of one block, before its unit is tried without preprocessing."""
    min_wait_s: float = 0.1
    """Shortest wait for results."""


@dataclass(frozen=True)
class RunningUnit:
    """The unit that an actor runs: earlier attempts, the job's deadline, this attempt's age."""

    attempts: int
    deadline_s: float
    running_s: float


@dataclass(frozen=True)
class PoolState:
    """Snapshot of the pool.

    `units` has one item per slot, None while its actor starts or has nothing to do. `dead_starts`
    counts actors in a row that died as they started, `memory_kills` actors in a row that were
    killed because memory was full. `slowest_unit_s` is 0 until one is finished.
    """

    units: Sequence[RunningUnit | None]
    dead_starts: int = 0
    memory_kills: int = 0
    slowest_unit_s: float = 0.0


class Event(Enum):
    """Event in the pool."""

    BEFORE_WAIT = auto()  # all results that arrived are collected
    WAIT_TIMED_OUT = auto()  # neither a start nor a result arrived in time
    ACTOR_DIED = auto()
    OUT_OF_MEMORY = auto()  # an actor was killed because its machine's memory was full
    PREPROCESSING_DIED = auto()  # a block's preprocessing died, after all its retries


class Action(Enum):
    """Action that the pool carries out."""

    WAIT = auto()
    REPLACE_ACTOR = auto()
    RETRY_UNIT = auto()  # replace the actor and count an attempt at its first unit
    FAIL = auto()


@dataclass(frozen=True)
class Decision:
    """An action, with the timeout of a wait, or the slot concerned and the text to log or raise."""

    action: Action
    timeout_s: float = 0.0
    slot: int | None = None
    message: str = ""


def decide(
    event: Event, pool: PoolState, policy: PoolPolicy, *, slot: int = 0, reason: str = ""
) -> Decision:
    """Return what to do about an event. `slot` and `reason` describe the actor of a death."""
    match event:
        case Event.BEFORE_WAIT:
            return _wait_or_replace_hung(pool, policy)
        case Event.WAIT_TIMED_OUT:
            return _after_timeout(pool, policy)
        case Event.ACTOR_DIED:
            return _after_death(pool, policy, slot, reason)
        case Event.OUT_OF_MEMORY:
            return _after_memory_kill(pool, policy, slot, reason)
        case Event.PREPROCESSING_DIED:
            return _after_death(pool, policy, slot, "the preprocessing of its unit died repeatedly")


def unit_limit_s(unit: RunningUnit, slowest_unit_s: float, policy: PoolPolicy) -> float:
    """Return the seconds after which an attempt at a unit counts as hung.

    The job's deadline is an upper bound that knows nothing about this archive and this hardware.
    Once a unit is finished, the slowest one gives a closer bound. Both grow with the attempts, the
    deadline only once. Example, with a deadline of 600 s:

        attempts before   no unit finished   slowest unit 12 s
        0                 600 s              20 * 12      = 240 s
        1                 600 * 5 = 3000 s   240 * 5      = 1200 s
        2                 3000 s             240 * 5 * 5  = 6000 s, bounded by 3000 s
    """
    usual_s = unit.deadline_s
    if slowest_unit_s:
        usual_s = max(policy.min_limit_s, policy.slowest_factor * slowest_unit_s)

    growth = policy.retry_factor**unit.attempts
    return min(usual_s * growth, unit.deadline_s * min(growth, policy.retry_factor))


def _wait_or_replace_hung(pool: PoolState, policy: PoolPolicy) -> Decision:
    """Replace the first actor whose unit is over its limit; else wait until the next limit."""
    timeout_s = None
    for slot, unit in enumerate(pool.units):
        if unit is None:
            continue
        left_s = unit_limit_s(unit, pool.slowest_unit_s, policy) - unit.running_s
        if left_s < 0:
            reason = f"it was hung in one unit for {format_duration(unit.running_s)}"
            return _after_death(pool, policy, slot, reason)
        timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)

    if timeout_s is None:
        return Decision(Action.WAIT, timeout_s=policy.start_timeout_s)
    return Decision(Action.WAIT, timeout_s=max(policy.min_wait_s, timeout_s))


def _after_timeout(pool: PoolState, policy: PoolPolicy) -> Decision:
    # Actors that cannot start do not matter while others work.
    if any(pool.units):
        return Decision(Action.WAIT)
    message = (
        f"no worker could be started in {policy.start_timeout_s:.0f} s: "
        "the cluster has no room for any"
    )
    return Decision(Action.FAIL, message=message)


def _after_memory_kill(pool: PoolState, policy: PoolPolicy, slot: int, reason: str) -> Decision:
    """Replace an actor as after a death; fail if memory seems to stay full.

    A picture that needs too much memory kills 3 workers, then it is rejected. On a machine whose
    memory is full, every new worker is killed, before it has finished anything.
    """
    kills = pool.memory_kills + 1
    if kills >= policy.max_memory_kills and kills > len(pool.units):
        message = (
            f"memory is full: {kills} workers in a row were killed before one had finished a unit; "
            "give fewer --workers, or stop other programs"
        )
        return Decision(Action.FAIL, slot=slot, message=message)
    reason = reason or "Ray killed it because memory is full"
    return _after_death(
        pool, policy, slot, f"{reason}; give fewer --workers, or stop other programs"
    )


def _after_death(pool: PoolState, policy: PoolPolicy, slot: int, reason: str) -> Decision:
    """Replace an actor; fail after too many dead starts, or attempts at its unit."""
    unit = pool.units[slot]
    message = f"a worker is replaced: {reason.splitlines()[0]}"

    if unit is None:  # only an actor that has started gets units
        dead_starts = pool.dead_starts + 1
        if dead_starts >= policy.max_dead_starts and dead_starts > len(pool.units):
            message = f"{dead_starts} workers in a row died as they started; the last: {reason}"
            return Decision(Action.FAIL, slot=slot, message=message)
        return Decision(Action.REPLACE_ACTOR, slot=slot, message=message)

    attempts = unit.attempts + 1
    if attempts >= policy.max_attempts:
        message = f"{attempts} workers in a row failed at one unit; the last: {reason}"
        return Decision(Action.FAIL, slot=slot, message=message)
    return Decision(Action.RETRY_UNIT, slot=slot, message=message)
