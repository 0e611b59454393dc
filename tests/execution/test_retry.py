"""The actor pool's decisions, on snapshots: no Ray, no clock."""

from __future__ import annotations

import subprocess
import sys

import pytest

from afinar.execution.retry import (
    Action,
    Decision,
    Event,
    PoolPolicy,
    PoolState,
    RunningUnit,
    decide,
    unit_limit_s,
)

POLICY = PoolPolicy()


def running(running_s: float = 0.0, attempts: int = 0, deadline_s: float = 600.0) -> RunningUnit:
    return RunningUnit(attempts, deadline_s, running_s)


def before_wait(pool: PoolState) -> Decision:
    return decide(Event.BEFORE_WAIT, pool, POLICY)


def actor_died(pool: PoolState, policy: PoolPolicy = POLICY) -> Decision:
    return decide(Event.ACTOR_DIED, pool, policy, slot=0, reason="SIGKILL\ndetails")


def test_actor_dead_at_its_start_is_replaced() -> None:
    decision = actor_died(PoolState([None, running()]))
    assert decision == Decision(
        Action.REPLACE_ACTOR, slot=0, message="a worker is replaced: SIGKILL"
    )


@pytest.mark.parametrize(
    ("slots", "dead_starts_before", "action"),
    [
        (2, 1, Action.REPLACE_ACTOR),
        (2, 2, Action.FAIL),
        (1, 1, Action.REPLACE_ACTOR),
        (1, 2, Action.FAIL),
        (5, 4, Action.REPLACE_ACTOR),  # all five may be on one broken node
        (5, 5, Action.FAIL),
    ],
)
def test_dead_starts_in_a_row_fail_the_job(
    slots: int, dead_starts_before: int, action: Action
) -> None:
    decision = actor_died(PoolState([None] * slots, dead_starts_before))
    assert decision.action is action
    if action is Action.FAIL:
        count = dead_starts_before + 1
        assert decision.message.startswith(f"{count} workers in a row died as they started")
        assert "details" in decision.message


def test_actor_dead_with_a_unit_has_the_unit_retried() -> None:
    decision = actor_died(PoolState([running(), None], dead_starts=5))
    assert (decision.action, decision.slot) == (Action.RETRY_UNIT, 0)


@pytest.mark.parametrize(
    ("slots", "kills_before", "action"),
    [
        (2, 6, Action.RETRY_UNIT),
        (2, 7, Action.FAIL),
        (20, 7, Action.RETRY_UNIT),  # one burst of kills may hit them all
        (20, 20, Action.FAIL),
    ],
)
def test_memory_that_stays_full_fails_the_job(
    slots: int, kills_before: int, action: Action
) -> None:
    pool = PoolState([running()] * slots, memory_kills=kills_before)
    decision = decide(Event.OUT_OF_MEMORY, pool, POLICY, slot=1)
    assert (decision.action, decision.slot) == (action, 1)
    assert "memory is full" in decision.message
    assert "fewer --workers" in decision.message


def test_dead_preprocessing_has_the_unit_retried() -> None:
    decision = decide(Event.PREPROCESSING_DIED, PoolState([None, running()]), POLICY, slot=1)
    assert (decision.action, decision.slot) == (Action.RETRY_UNIT, 1)
    assert "preprocessing" in decision.message


def test_unit_that_kills_every_worker_fails_the_job() -> None:
    policy = PoolPolicy(max_attempts=3)
    actions = [
        actor_died(PoolState([running(attempts=attempts)]), policy).action for attempts in range(3)
    ]
    assert actions == [Action.RETRY_UNIT, Action.RETRY_UNIT, Action.FAIL]
    last = actor_died(PoolState([running(attempts=2)]), policy)
    assert last.message.startswith("3 workers in a row failed at one unit; the last: SIGKILL")


def test_unit_that_hangs_in_every_worker_fails_the_job() -> None:
    pool = PoolState([running(running_s=4000, attempts=49)])
    assert before_wait(pool).action is Action.FAIL


def test_hung_unit_is_retried() -> None:
    decision = before_wait(PoolState([None, running(599), running(601)]))
    assert (decision.action, decision.slot) == (Action.RETRY_UNIT, 2)
    assert decision.message == "a worker is replaced: it was hung in one unit for 10 min"


def test_wait_ends_when_the_first_unit_reaches_its_limit() -> None:
    pool = PoolState([running(100), running(580), None])
    assert before_wait(pool) == Decision(Action.WAIT, timeout_s=20.0)
    almost_over = PoolState([running(599.999)])
    assert before_wait(almost_over) == Decision(Action.WAIT, timeout_s=POLICY.min_wait_s)


def test_wait_without_units_ends_at_the_start_timeout() -> None:
    assert before_wait(PoolState([None, None])) == Decision(Action.WAIT, timeout_s=600.0)


def test_no_actor_started_in_time_fails_the_job() -> None:
    decision = decide(Event.WAIT_TIMED_OUT, PoolState([None, None]), POLICY)
    assert decision.action is Action.FAIL
    assert "no room" in decision.message


def test_actors_without_room_do_not_matter_while_another_works() -> None:
    pool = PoolState([None, running()])
    assert decide(Event.WAIT_TIMED_OUT, pool, POLICY).action is Action.WAIT


@pytest.mark.parametrize(
    ("attempts", "slowest_unit_s", "limit_s"),
    [
        (0, 0.0, 600.0),  # no unit finished: the job's deadline
        (1, 0.0, 3000.0),
        (2, 0.0, 3000.0),  # the deadline grows once
        (0, 12.0, 240.0),  # 20 times the slowest unit
        (1, 12.0, 1200.0),
        (2, 12.0, 3000.0),  # 6000, bounded by the deadline
        (0, 0.5, 60.0),  # never less than a minute
        (1, 0.5, 300.0),
        (0, 100.0, 600.0),  # 2000, bounded by the deadline
    ],
)
def test_limit_grows_with_attempts_and_follows_the_slowest_unit(
    attempts: int, slowest_unit_s: float, limit_s: float
) -> None:
    assert unit_limit_s(running(attempts=attempts), slowest_unit_s, POLICY) == limit_s


def test_executor_and_policy_import_no_ray() -> None:
    probe = "import sys, afinar.execution.executor; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
