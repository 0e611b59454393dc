"""The time limit: which steps fit, and what a training does that is cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.training import time_limit as module
from afinar.training.time_limit import TimeLimit, steps_that_fit
from tests.conftest import Trained
from tests.training.runs import config, run


def test_steps_that_fit_leave_room_for_validation_and_the_end() -> None:
    fit = steps_that_fit(100, step_s=1, steps_per_epoch=10, validation_s=5, final_s=20)
    assert fit == 50
    assert steps_that_fit(10, step_s=1, steps_per_epoch=10, validation_s=5, final_s=20) == 0


def limit(deadline_s: float | None, clock: list[float]) -> TimeLimit:
    return TimeLimit(
        deadline_s, 1000, steps_per_epoch=100, batch_size=10, validation=100, test=100,
        clock=lambda: clock[0],
    )  # fmt: skip


def test_limit_cuts_by_the_pace_so_far() -> None:
    clock = [0.0]
    plan = limit(1000.0, clock)
    plan.begin(0)
    assert plan.fitting(0) == 1000, "the pace is unknown"
    clock[0] = 20.0
    assert 400 < plan.fitting(10) < 500, "2 s each"
    plan.steps = 450
    clock[0] = 21.0
    assert plan.fitting(100) == 450, "the number never rises"


def test_without_a_limit_nothing_is_cut() -> None:
    clock = [0.0]
    plan = limit(None, clock)
    plan.begin(0)
    clock[0] = 1e9
    assert plan.fitting(10) == 1000
    assert not plan.is_over()


def test_training_without_time_ends_within_its_first_epoch_and_says_so(
    trained: Trained, tmp_path: Path
) -> None:
    result = run(config(trained, tmp_path, epochs=50, time_limit=1e-6))
    assert result.epochs == 1
    assert result.history[-1]["cut"]
    assert result.history[-1]["ledger"]["steps"] == 1
    assert result.settings["is_cut"]
    assert 0 <= result.metrics["test"]["top1"] <= 1


def test_training_that_the_limit_does_not_reach_is_the_same(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(config(trained, tmp_path / "plain", epochs=2))
    limited = run(config(trained, tmp_path / "limited", epochs=2, time_limit=600))
    assert limited.weights == plain.weights
    assert "is_cut" not in limited.settings

    # Ten steps of the fourteen or so: the cut is within an epoch, and no later epoch begins.
    monkeypatch.setattr(module.TimeLimit, "fitting", lambda self, _: min(self.steps, 10))
    cut = run(config(trained, tmp_path / "cut", epochs=50, time_limit=600))
    assert sum(row["ledger"]["steps"] for row in cut.history) == 10
    assert cut.history[-1]["learning_rate"] < cut.history[0]["learning_rate"]
