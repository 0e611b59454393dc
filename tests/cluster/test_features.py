"""Features on a real Ray: a worker that dies costs the units in flight, and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from afinar.execution.executor import RayExecutor
from afinar.features.reader import open_features
from afinar.units.results import UnitResult
from afinar.units.tasks import UnitTask
from tests.archives import ingest
from tests.conftest import make_archive
from tests.features.jobs import compute, put_weights


def _deadly_worker(make_work: Callable[[], Any], marks: Path) -> Callable[[UnitTask], UnitResult]:
    """Make a worker that notes its units, and kills itself once, after it has committed one."""
    work = make_work()

    def run(task: UnitTask) -> UnitResult:
        number = len(list(marks.iterdir()))
        (marks / f"{task.unit}-{task.attempt}-{os.getpid()}-{number}").touch()
        result: UnitResult = work(task)
        try:
            (marks.parent / "dead").touch(exist_ok=False)
        except FileExistsError:
            return result
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    return run


class DeadlyExecutor:
    """Runs units on Ray; the first worker that completes one is killed before it reports it."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def run(
        self, make_work: Callable[[], Any], tasks: Iterable[Any], policy: Any = None
    ) -> Iterator[Any]:
        deadly = partial(_deadly_worker, make_work, self.marks)
        return RayExecutor("auto", 2).run(deadly, tasks, policy)


@pytest.mark.usefixtures("local_ray")
def test_killed_worker_repeats_no_unit_but_its_own(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 90)
    dataset, marks = tmp_path / "dataset", tmp_path / "marks"
    marks.mkdir()
    ingest(archive, dataset)
    weights = put_weights(tmp_path / "small.safetensors")
    summary = compute(dataset, weights, DeadlyExecutor(marks), cut="3,6")
    assert {result.pictures for result in summary.features} == {180}
    assert len(open_features(str(dataset), cut="3").sample_ids) == 180

    units = [path.name.split("-")[0] for path in marks.iterdir()]
    assert (len(set(units)), len(units)) == (3, 4), "one unit ran twice"
