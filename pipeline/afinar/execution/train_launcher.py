"""Launcher of training workers: Ray Train runs `training.worker.train` in each of them."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray.train
from ray.exceptions import RayError
from ray.train import RunConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

# The classes that ray.train exports at run time; under these names mypy knows their types.
from ray.train.v2.api.config import FailureConfig, ScalingConfig

from afinar.config.train import TrainConfig
from afinar.errors import AfinarError, RequestError, ShortfallError, StorageError
from afinar.execution.failures import root_cause
from afinar.execution.session import (
    cluster_address,
    cluster_cores,
    cluster_gpus,
    fits,
    ray_session,
    wait_for_resources,
)
from afinar.logs import LogSettings, configure_worker_logging, log_settings
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.training.distributed import Group
from afinar.training.failure import delete_failure, read_failure, record_failure
from afinar.training.task import TrainTask
from afinar.training.worker import train

_GROUP_START_S: Final = 60.0  # Ray Train's timeout of one attempt to start the workers
_RESOURCE_POLL_S: Final = 1.0
_CAPACITY_POLL_S: Final = 5.0


def launch_on_ray(task: TrainTask) -> None:
    """Run the workers of a training until all have ended; a `training.driver.Launcher`.

    A worker or a machine that dies is replaced, and the training resumes from its newest
    checkpoint. Raises the error of the worker that failed first, RequestError or ShortfallError if
    the cluster lacks resources.
    """
    config = task.config
    store = open_store(config.models)
    delete_failure(store, task.run)

    cores = config.workers * config.cores_per_worker
    with ray_session(config.address, cores, dashboard=True):
        resources = _worker_resources(config)
        _set_ray_train_options(config)
        trainer = TorchTrainer(
            _run_worker,
            train_loop_config={"task": task, "log": log_settings()},
            scaling_config=resources.scaling_config(),
            torch_config=TorchConfig(backend="nccl" if resources.has_gpu else "gloo"),
            run_config=_run_config(task),
        )
        with _abort_if_cluster_shrinks(store, task.run, resources, config.start_timeout_s):
            _fit(trainer, store, task.run)

    failure = read_failure(store, task.run)
    if failure is not None:
        raise failure


def _set_ray_train_options(config: TrainConfig) -> None:
    # Ray Train's patched print() would show every line twice.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # By default a dead worker is noticed only after 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    start_timeout_s = min(_GROUP_START_S, config.start_timeout_s)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(start_timeout_s))


@dataclass(frozen=True, kw_only=True)
class _WorkerResources:
    """Number of workers, the fewest that may train, and the resources (`bundle`) of each."""

    workers: int
    min_workers: int
    bundle: Mapping[str, float]

    @property
    def has_gpu(self) -> bool:
        return "GPU" in self.bundle

    def scaling_config(self) -> ScalingConfig:
        """Return Ray Train's form; elastic if fewer workers may train."""
        elastic = self.min_workers < self.workers
        return ScalingConfig(
            num_workers=(self.min_workers, self.workers) if elastic else self.workers,
            use_gpu=self.has_gpu,
            resources_per_worker=dict(self.bundle),
            elastic_resize_monitor_interval_s=30.0,
        )


def _worker_resources(config: TrainConfig) -> _WorkerResources:
    """Return the workers' resources once the cluster can hold the fewest workers.

    Raises RequestError if a cluster that cannot grow lacks them, ShortfallError if a cluster that
    can does not provide them in time.
    """
    gpus, cores = cluster_gpus(), cluster_cores()
    workers = config.workers or gpus or min(2, cores)
    min_workers = config.min_workers or workers
    cpus = config.cores_per_worker or (1 if gpus else _cpus_per_worker(workers, cores))
    bundle: dict[str, float] = {"CPU": cpus, "GPU": 1} if gpus else {"CPU": cpus}

    if not wait_for_resources(
        bundle, min_workers, config.address, config.start_timeout_s, _RESOURCE_POLL_S
    ):
        available = f"{cluster_cores()} cores and {cluster_gpus()} GPUs"
        wanted = f"--workers {min_workers} of {cpus} cores each"
        if cluster_address(config.address) is None:
            raise RequestError(
                f"{wanted}: this machine has {available}; give fewer, or the --address of a cluster"
            )
        raise ShortfallError(
            f"{wanted}: the cluster, with {available}, did not give them in "
            f"{config.start_timeout_s:.0f} s"
        )
    return _WorkerResources(workers=workers, min_workers=min_workers, bundle=bundle)


def _cpus_per_worker(workers: int, cores: int) -> int:
    """Return the largest number of cores that each worker can have on the cluster's nodes.

    Example: 2 workers on nodes of 3 and 5 cores can have 3 each; 4 each would need two nodes of 4.
    """
    candidates = range(cores // workers, 1, -1)
    return next((cpus for cpus in candidates if fits({"CPU": cpus}, workers)), 1)


def _run_config(task: TrainTask) -> RunConfig:
    """Return Ray Train's options. Its files go into the run's folder, beside those of afinar."""
    config = task.config
    options: dict[str, Any] = {
        # A new name for each job: Ray Train must not resume, the training does so itself.
        "name": f"ray-train-{int(time.time())}",
        "failure_config": FailureConfig(
            max_failures=config.max_failures,
            controller_failure_limit=max(1, math.ceil(config.start_timeout_s / _GROUP_START_S)),
        ),
    }
    folder = f"{config.models}/runs/{task.run}"
    if not folder.startswith("s3://"):
        return RunConfig(storage_path=folder, **options)
    import pyarrow.fs
    import s3fs

    # s3fs takes credentials and endpoint from the environment of each process.
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(s3fs.S3FileSystem()))
    return RunConfig(
        storage_path=folder.removeprefix("s3://"), storage_filesystem=filesystem, **options
    )


@contextmanager
def _abort_if_cluster_shrinks(
    store: Store, run: str, resources: _WorkerResources, timeout_s: float
) -> Iterator[None]:
    """Abort the training in the block if the cluster cannot hold the fewest workers for too long.

    Without this Ray Train would wait for an elastic group forever. A thread polls the cluster.
    After `timeout_s` it records a failure and sends SIGINT to this process: that is how Ray Train's
    `fit` is aborted, and `_fit` then raises the failure.
    """
    block_ended = threading.Event()

    def watch() -> None:
        fitted_at = time.monotonic()
        while not block_ended.wait(_CAPACITY_POLL_S):
            if fits(resources.bundle, resources.min_workers):
                fitted_at = time.monotonic()
            elif time.monotonic() - fitted_at > timeout_s:
                message = (
                    f"the cluster has had no room for {resources.min_workers} workers for "
                    f"{timeout_s:.0f} s; the same command continues when it has"
                )
                record_failure(store, run, ShortfallError(message))
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        block_ended.set()
        thread.join()


def _fit(trainer: TorchTrainer, store: Store, run: str) -> None:
    """Run the trainer until its workers have ended. Raises the error that made it fail."""
    try:
        with _sigint_handler_restored():
            trainer.fit()
    except (KeyboardInterrupt, SystemExit):
        # On SIGINT Ray Train aborts its workers and raises SystemExit.
        raise read_failure(store, run) or KeyboardInterrupt from None
    except (RayError, ray.train.TrainingFailedError) as error:
        failure = read_failure(store, run)
        cause = root_cause(error) if isinstance(error, RayError) else _first_failure(error)
        raise (failure or cause) from error


@contextmanager
def _sigint_handler_restored() -> Iterator[None]:
    """Restore the handler of SIGINT, which `fit` replaces in the main thread, after the block."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _first_failure(error: Exception) -> Exception:
    """Return the error of the worker that failed first; the errors of the others follow from it.

    A worker that was killed has no time of failure. It comes first: it explains the broken
    connections of the others.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = [root_cause(failures[rank]) for rank in sorted(failures)]
    if not causes:
        cause = getattr(error, "controller_failure", error)
        return ShortfallError(f"the cluster did not keep the workers' resources: {cause}")

    return min(causes, key=lambda cause: getattr(cause, "failed_at", -math.inf))


def _run_worker(options: dict[str, Any]) -> None:
    """Train in one worker process.

    An error that would recur is recorded in the store: later attempts then end at once, and the
    driver raises it. Nothing is reported to Ray Train: a report costs 2 s, and the run's folder has
    everything.
    """
    task: TrainTask = options["task"]
    log: LogSettings = options["log"]
    store = open_store(task.config.models)
    if read_failure(store, task.run) is not None:
        return

    _use_assigned_cores()
    group = Group(get_device())
    configure_worker_logging(log, run=task.run, rank=group.rank)
    try:
        train(task, group)
    except AfinarError as error:
        # A plain StorageError is an unreachable store: another attempt may succeed.
        if type(error) is StorageError:
            raise
        record_failure(store, task.run, error)
        # All workers raise a shortfall together. Another error may be this worker's alone: raising
        # it makes Ray Train end the others.
        if group.size > 1 and not isinstance(error, ShortfallError):
            raise
    except Exception as error:
        # Ray Train keeps only a thousand characters of the message; the note keeps the traceback.
        error.add_note(f"on rank {group.rank}\n{traceback.format_exc()}")
        error.failed_at = time.time()  # type: ignore[attr-defined]  # read by `_first_failure`
        raise


def _use_assigned_cores() -> None:
    """Let torch use as many threads as Ray assigned cores to this worker."""
    import torch

    context = ray.get_runtime_context()
    cores = context.get_assigned_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(cores)))
