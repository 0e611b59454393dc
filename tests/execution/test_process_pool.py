"""Processes without Ray; tests for both executors are in tests/cluster/test_executor.py."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from afinar.errors import StorageError
from afinar.execution.executor import LocalExecutor
from afinar.execution.retry import PoolPolicy
from afinar.execution.shared import share_workers
from afinar.logs import configure_logging
from afinar.units.cores import worker_cores
from tests.conftest import heed_interrupts
from tests.work import make_crash, make_crash_awkwardly, make_double, make_log_and_print


class WithoutModule:
    """Work that a worker fails to import."""

    def __call__(self) -> Callable[[int], int]:
        return lambda number: number

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return importlib.import_module, ("absent",)


DRIVER = """
import sys
from functools import partial
from pathlib import Path

from afinar.execution.executor import LocalExecutor
from tests.execution.test_process_pool import make_endless

list(LocalExecutor(2).run(partial(make_endless, Path(sys.argv[1])), [1, 2]))
"""


def make_endless(folder: Path) -> Callable[[int], None]:
    def work(number: int) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(3600)

    return work


def make_killed() -> Callable[[int], None]:
    return lambda _: os.kill(os.getpid(), signal.SIGKILL)


def make_pid() -> Callable[[float], int]:
    def work(seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    return work


def make_cores() -> Callable[[float], int]:
    return lambda _: worker_cores()


def make_modules() -> Callable[[str], tuple[int, bool]]:
    return lambda name: (os.getpid(), name in sys.modules)


def make_environment() -> Callable[[str], str]:
    return lambda name: os.environ.get(name, "")


def test_bug_in_the_work_has_the_traceback_of_the_worker() -> None:
    with pytest.raises(ZeroDivisionError) as crash:
        list(LocalExecutor(1).run(make_crash, [3]))
    assert "in crash" in crash.value.__notes__[0]
    with pytest.raises(RuntimeError, match="AwkwardError: unit 3 because of its error"):
        list(LocalExecutor(1).run(make_crash_awkwardly, [3]))


def test_memory_that_stays_full_fails_the_job() -> None:
    """The system's killer of processes sends SIGKILL."""
    executor = LocalExecutor(1, PoolPolicy(max_memory_kills=2))
    with pytest.raises(StorageError, match="memory is full: 2 workers in a row were killed"):
        list(executor.run(make_killed, [1]))


def test_workers_have_the_environment_of_their_driver_and_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://there")
    names = ["AWS_ENDPOINT_URL", "OMP_NUM_THREADS"]
    assert list(LocalExecutor(1).run(make_environment, names)) == ["http://there", "1"]


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_jobs_share_their_processes_until_the_block_ends() -> None:
    alone = {*LocalExecutor(2).run(make_pid, [0]), *LocalExecutor(2).run(make_pid, [0])}
    assert len(alone) == 2, "each job has its own"
    with share_workers():
        first = set(LocalExecutor(2).run(make_pid, [0.5] * 6))
        second = set(LocalExecutor(1).run(make_pid, [0] * 5))
        assert second < first and len(first) == 2
        assert set(LocalExecutor(3).run(make_pid, [0.5] * 9)) > first, "one was started in addition"
        assert all(map(is_alive, first))
    assert not any(map(is_alive, first))


def test_few_idle_processes_are_kept() -> None:
    with share_workers():
        started = set(LocalExecutor(5).run(make_pid, [0.5] * 15))
        assert len(started) == 5
        assert sum(map(is_alive, started)) == 3


def test_shared_process_logs_for_the_job_that_it_works_for(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with share_workers():
        for run in ("one", "two"):
            configure_logging("json", run=run)
            assert list(LocalExecutor(1).run(make_log_and_print, [7])) == [7]
    configure_logging()
    runs = [
        json.loads(line)["run"]
        for line in capfd.readouterr().err.splitlines()
        if "by unit 7" in line
    ]
    assert runs == ["one", "two"]


def test_shared_process_that_died_or_failed_is_not_taken_again() -> None:
    with share_workers():
        [idle] = LocalExecutor(1).run(make_pid, [0])
        os.kill(idle, signal.SIGKILL)
        [second] = LocalExecutor(1).run(make_pid, [0])
        assert second != idle
        with pytest.raises(ZeroDivisionError):
            list(LocalExecutor(1).run(make_crash, [3]))
        [third] = LocalExecutor(1).run(make_pid, [0])
        assert third != second
        # A job that cannot be imported in the process of another one tells its driver.
        with pytest.raises(ModuleNotFoundError, match="absent"):
            list(LocalExecutor(1).run(WithoutModule(), [1]))
        assert list(LocalExecutor(1).run(partial(make_double, 0), [1])) == [2]


def test_workers_have_the_cores_of_their_job() -> None:
    with share_workers():
        for cores in (3, 1):
            assert list(LocalExecutor(1, cores=cores).run(make_cores, [0])) == [cores]
    assert worker_cores() == 0, "in the driver"


def test_prepared_process_is_taken_by_the_next_job() -> None:
    module = "wave"  # one that nothing imports
    with share_workers():
        [(first, imported)] = LocalExecutor(1, prepares=module).run(make_modules, [module])
        assert not imported, "this job has a process of its own"
        [(second, imported)] = LocalExecutor(1).run(make_modules, [module])
        assert imported and second != first
        again = {*LocalExecutor(1).run(make_modules, [module])}
        assert again == {(second, True)}
    with pytest.raises(ZeroDivisionError), share_workers():
        list(LocalExecutor(1, prepares="absent").run(make_crash, [3]))
    assert list(LocalExecutor(1, prepares=module).run(make_cores, [0])) == [1]


def test_user_modules_in_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("queue", "random", "types"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a script of the user')")
    monkeypatch.chdir(tmp_path)
    assert list(LocalExecutor(1).run(partial(make_double, 0), [1])) == [2]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_driver(number: signal.Signals, tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=heed_interrupts,  # noqa: PLW1509
    )
    try:
        while len(list(tmp_path.iterdir())) < 2:
            assert driver.poll() is None, "the driver ended before its workers began"
            time.sleep(0.05)
        workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
        driver.send_signal(number)
        driver.wait(60)
    finally:
        driver.kill()
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert len(gone) == 2, alive
