"""`python -m tests.cluster.label_chaos VICTIM SEED SOURCE OUT MODEL AUDIT`: a labelling with kills.

VICTIM is what gets SIGKILL: `actor` (two workers, one after the other, on a local Ray of two
cores), `process` (two workers without Ray), `preprocessing` (two processes that decode for a worker
on the other core), `raylet` (of one of three nodes); `none`, or `none-of-processes` without Ray.
SEED determines when. Each worker appends the units that it starts to a file of its own in AUDIT.
Prints how many pictures were labelled and how many processes were killed.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from afinar.config.label import LabelConfig
from afinar.execution.executor import LocalExecutor, RayExecutor
from afinar.execution.session import ray_session
from afinar.labelling.driver import LabelSummary, run_labelling
from afinar.units.executor import Executor, RetryPolicy
from tests.cluster.raylets import HEALTH


class AuditedExecutor:
    """Another executor, whose workers write down the units that they start.

    With a folder `busy` other processes decode, each with a file in it while it prepares a block.
    """

    def __init__(self, executor: Executor, audit: Path, busy: Path | None) -> None:
        self._executor, self._audit, self._busy = executor, audit, busy

    def run(
        self,
        make_work: Callable[[], Any],
        tasks: Iterable[Any],
        policy: RetryPolicy[Any] | None = None,
    ) -> Iterator[Any]:
        if self._busy is not None:
            assert policy is not None
            assert policy.preprocessing is not None
            prepare = partial(_prepare_visibly, policy.preprocessing.prepare, self._busy)
            policy = replace(policy, preprocessing=replace(policy.preprocessing, prepare=prepare))
        return self._executor.run(partial(_audit_units, make_work, self._audit), tasks, policy)


def _prepare_visibly(prepare: Callable[[Any], Any], busy: Path, block: Any) -> Any:
    marker = busy / str(os.getpid())
    marker.touch()
    try:
        return prepare(block)
    finally:
        marker.unlink()


def _audit_units(make_work: Callable[[], Any], audit: Path) -> Any:
    work = make_work()

    def run(task: Any, *blocks: Any) -> Any:
        with (audit / str(os.getpid())).open("a") as file:
            file.write(f"{task.unit}\n")
        return work(task, *blocks)

    return run


def started_units(audit: Path) -> list[str]:
    """Return the units that workers started, once for each start."""
    return [unit for path in audit.iterdir() for unit in path.read_text().splitlines()]


def alive(folder: Path) -> list[psutil.Process]:
    """Return the running processes that have a file in a folder."""
    processes = []
    for path in folder.iterdir():
        try:
            processes.append(psutil.Process(int(path.name)))
        except psutil.NoSuchProcess:
            continue
    return processes


class Killer(threading.Thread):
    """Kills `times` victims, each at a random moment after a unit starts, until `stop` is set."""

    def __init__(
        self,
        audit: Path,
        victims: Path,
        rng: random.Random,
        times: int,
        kill: Callable[[psutil.Process], None],
    ) -> None:
        super().__init__()
        self._audit, self._victims, self._rng = audit, victims, rng
        self._times, self._kill = times, kill
        self.killed = 0
        self.stop = threading.Event()

    def run(self) -> None:
        while self.killed < self._times and not self.stop.is_set():
            seen = len(started_units(self._audit))
            while len(started_units(self._audit)) == seen and not self.stop.wait(0.01):
                pass
            if self.stop.wait(1.5 * self._rng.random()):
                return
            if processes := alive(self._victims):
                self._kill(self._rng.choice(processes))
                self.killed += 1


def run_audited(source: str, out: str, model: str, executor: AuditedExecutor) -> LabelSummary:
    config = LabelConfig(source=source, predictions=out, model=model, precision="float32")
    return run_labelling(config, executor).summary


def main(victim: str, seed: str, source: str, out: str, model: str, audit: str) -> None:
    rng, folder = random.Random(int(seed)), Path(audit)
    busy = folder.parent / "busy" if victim == "preprocessing" else None
    if busy is not None:
        busy.mkdir()
    if victim == "raylet":
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH}
        )
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        ray.init(address=cluster.address, namespace="afinar", logging_level=logging.WARNING)

        def kill_raylet(worker: psutil.Process) -> None:
            (raylet,) = (parent.pid for parent in worker.parents() if parent.pid in raylets)
            raylets[raylet].kill_raylet(check_alive=False)

        killer = Killer(folder, folder, rng, 1, kill_raylet)
    else:
        times = 0 if victim.startswith("none") else 2
        killer = Killer(
            folder, busy or folder, rng, times, lambda process: process.send_signal(signal.SIGKILL)
        )
    executor: Executor = RayExecutor(
        None, workers=1 if busy else 0, always_preprocess=busy is not None
    )
    session: AbstractContextManager[None] = ray_session("local", 2)
    if victim.endswith(("process", "processes")):
        executor, session = LocalExecutor(2), nullcontext()
    with session:
        killer.start()
        try:
            summary = run_audited(source, out, model, AuditedExecutor(executor, folder, busy))
        finally:
            killer.stop.set()
            killer.join()
        print(json.dumps({"labelled": summary.labelled, "killed": killer.killed}), flush=True)
    if victim == "raylet":
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    # Workers without Ray import the functions of their work, which this file's __main__ has not.
    from tests.cluster import label_chaos  # noqa: PLW0406

    label_chaos.main(*sys.argv[1:])
