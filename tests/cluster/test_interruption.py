"""A signal to a job on its own Ray: exit code, one sentence, no process and no file left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import SCRIPTS, Trained

FLAGS = (
    "--backbone small_cnn --weights none --regime scratch --input-size 64 --batch-size 8 "
    "--epochs 4000 --checkpoint-steps 1 --workers 1 --cores-per-worker 1 --address local"
).split()


@pytest.mark.slow
def test_terminated_training_leaves_nothing_but_its_checkpoint(
    trained: Trained, tmp_path: Path
) -> None:
    """The signal goes to the whole group, as when a terminal or a batch system ends a job."""
    (tmp_path / "ray").mkdir()
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(
            [SCRIPTS / "afinar", "train", trained.dataset, "models", *FLAGS],
            cwd=tmp_path,
            env={**os.environ, "RAY_TMPDIR": str(tmp_path / "ray")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    checkpoints = (tmp_path / "models").glob
    while job.poll() is None and not list(checkpoints("runs/*/checkpoints/*.json")):
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGTERM)

    assert job.wait(120) == 143
    output = (tmp_path / "log").read_text()
    assert "Traceback" not in output
    assert output.splitlines()[-1] == (
        "afinar: interrupted by SIGTERM; the same command resumes the training from its newest "
        "checkpoint"
    )
    assert list((tmp_path / "ray").iterdir()) == []
    assert list((tmp_path / "models" / "unfinished").iterdir()), "it can be resumed"
    assert not list((tmp_path / "models").glob("runs/*/ray-train-*"))
    assert _gone(str(tmp_path / "ray"))


def _gone(ray_tmpdir: str, timeout_s: float = 60) -> bool:
    """Return whether no process of that Ray is left, after those that are ending have ended."""
    deadline = time.monotonic() + timeout_s
    while left := _processes(ray_tmpdir):
        if time.monotonic() > deadline:
            raise AssertionError(left)
        time.sleep(0.1)
    return True


def _processes(ray_tmpdir: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == ray_tmpdir:
                found.append(" ".join(process.cmdline())[:100])
        except psutil.Error:
            continue
    return found
