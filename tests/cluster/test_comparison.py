"""`compare` as a command that is killed half-way: the same command computes what is missing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from afinar.execution.choice import TrainingRoom
from tests.comparison.runs import compare
from tests.conftest import SCRIPTS, Trained, run_afinar
from tests.features.jobs import put_weights

CELLS = 8  # k-NN, a linear head, and two seeds each of mlp, last:1 and scratch


def test_comparison_with_killed_driver_is_completed_by_the_same_command(
    trained: Trained, tmp_path: Path
) -> None:
    weights = put_weights(tmp_path / "small.safetensors")
    options = "--backbone small_cnn --cut 6 --input-size 64 --seeds 2 --epochs 2 --batch-size 8"
    argv = ["compare", trained.dataset, "runs", "--weights", weights, *options.split()]
    argv += ["--regime", "frozen,last:1,scratch", "--keep-all"]
    cells = tmp_path / "runs" / "comparisons" / "cells"

    driver = subprocess.Popen([SCRIPTS / "afinar", *argv], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while driver.poll() is None and len(list(cells.glob("*.json"))) < 5:
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() < 0, "the job must still be running when it is killed"
    before = {path: path.read_bytes() for path in cells.glob("*.json")}
    assert 5 <= len(before) < CELLS

    done = run_afinar(*argv, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout)
    assert (summary["cells"], summary["computed"]) == (CELLS, CELLS - len(before))
    assert all(path.read_bytes() == data for path, data in before.items())
    assert {row["regime"] for row in summary["rows"]} == {"frozen", "last:1", "scratch"}


@pytest.mark.slow
def test_trainings_run_at_the_same_time_on_ray(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    from afinar.execution.train_launcher import launch_on_ray

    weights = put_weights(tmp_path / "small.safetensors")
    options: dict[str, Any] = {"cut": "6", "regime": "full,scratch", "seeds": 1, "epochs": 4}
    together = compare(
        trained.dataset,
        tmp_path / "together",
        weights,
        launch_on_ray,
        open_room=lambda: contextlib.nullcontext(TrainingRoom(2, 1, 1)),
        **options,
    )
    alone = compare(trained.dataset, tmp_path / "alone", weights, **options)
    assert together.computed == alone.computed == 2
    accuracies = [
        {row.regime: row.val for row in outcome.table.rows} for outcome in (together, alone)
    ]
    assert accuracies[0] == pytest.approx(accuracies[1])
