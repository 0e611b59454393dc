"""Launcher of training workers: Ray Train runs `training.worker.train` in each of them."""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import ray.train
from ray.exceptions import RayError
from ray.train import RunConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

# The classes that ray.train exports at run time; under these names mypy knows their types.
from ray.train.v2.api.config import FailureConfig, ScalingConfig

from afinar.config.base import cluster_address
from afinar.config.train import TrainConfig
from afinar.errors import AfinarError, RequestError, ShortfallError
from afinar.execution.failures import root_cause
from afinar.execution.session import (
    cluster_cores,
    cluster_gpus,
    fits,
    ray_session,
    session_folder,
    wait_for_resources,
)
from afinar.execution.train_failure import (
    delete_failure,
    new_failure_key,
    read_failure,
    record_failure,
    recurring_error,
)
from afinar.logs import LogSettings, configure_worker_logging, log_settings
from afinar.training.distributed import Group
from afinar.training.task import TrainTask, resolve_task
from afinar.training.worker import train

logger = logging.getLogger(__name__)

_GROUP_START_S: Final = 60.0  # Ray Train's timeout of one attempt to start the workers
_RESOURCE_POLL_S: Final = 1.0
_FAILURE_POLL_S: Final = 1.0
_CAPACITY_POLL_S: Final = 5.0
_ABORT_S: Final = 10.0
_JOIN_S: Final = 2.0


def launch_on_ray(task: TrainTask) -> None:
    """Run the workers of a training until all have ended; a `training.driver.Launcher`.

    A worker or a machine that dies is replaced, and the training resumes from its newest
    checkpoint. Raises the error of the worker that failed first, RequestError or ShortfallError if
    the cluster lacks resources.
    """
    config = task.config
    cores = config.workers * config.cores_per_worker
    stays_connected = ray.is_initialized()
    with ray_session(config.address, cores, dashboard=True):
        resources = _worker_resources(config)
        task = resolve_task(task, resources.workers, on_gpu=resources.has_gpu)
        _set_ray_train_options(config)
        failure_key = new_failure_key()
        trainer = _Trainer(
            _run_worker,
            train_loop_config={"task": task, "log": log_settings(), "failure_key": failure_key},
            scaling_config=resources.scaling_config(),
            torch_config=TorchConfig(backend="nccl" if resources.has_gpu else "gloo"),
            run_config=_run_config(task),
        )
        watch = _Watch(trainer, failure_key, resources, config.start_timeout_s)
        try:
            _fit(trainer, watch)
        except KeyboardInterrupt:
            # The end of the connection ends the workers, too, and sooner.
            if stays_connected:
                trainer.abort()
            raise
        finally:
            _delete_ray_files(trainer.run_config)


class _Trainer(TorchTrainer):
    """TorchTrainer that the driver can abort, and that leaves the handler of SIGINT alone."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def abort(self) -> None:
        """End the workers; `fit` then raises an error of Ray."""
        if self.controller is not None:
            with suppress(RayError):
                ray.get(self.controller.abort.remote(), timeout=_ABORT_S)


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
    """Return Ray Train's options.

    Its files must be where all workers can read them: in the folder of a local Ray, else in the
    run's folder.
    """
    config = task.config
    options: dict[str, Any] = {
        # A new name for each launch: Ray Train must not resume, the training does so itself.
        "name": f"ray-train-{uuid.uuid4().hex[:12]}",
        "failure_config": FailureConfig(
            max_failures=config.max_failures,
            controller_failure_limit=max(1, math.ceil(config.start_timeout_s / _GROUP_START_S)),
        ),
    }
    if cluster_address(config.address) is None:
        # All workers are on this machine.
        return RunConfig(storage_path=session_folder(), **options)
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


def _delete_ray_files(config: RunConfig) -> None:
    """Delete what Ray Train wrote about this launch: no later one reads it."""
    filesystem, folder = config.storage_filesystem, str(config.storage_path)
    try:
        if filesystem is None:
            shutil.rmtree(f"{folder}/{config.name}")
        else:
            filesystem.delete_dir(f"{folder}/{config.name}")
    except OSError as error:
        logger.debug(f"could not delete {folder}/{config.name}: {error}")


class _Watch:
    """Thread that aborts a training which cannot succeed: Ray Train itself would try on.

    Aborted are a training with a recorded failure, and one for whose fewest workers the cluster has
    had no room for `timeout_s`. `failure` is the reason.
    """

    def __init__(
        self, trainer: _Trainer, failure_key: str, resources: _WorkerResources, timeout_s: float
    ) -> None:
        self.failure: AfinarError | None = None
        self._trainer, self._failure_key = trainer, failure_key
        self._resources, self._timeout_s = resources, timeout_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        # After an interruption of all of Ray's processes the thread would wait for an answer.
        self._thread.join(_JOIN_S)

    def read_failure(self) -> AfinarError | None:
        """Return the error for which the training was or would be aborted, None if none."""
        return self.failure or read_failure(self._failure_key)

    def delete_failure(self) -> None:
        """Delete the record of the error from Ray's control service."""
        delete_failure(self._failure_key)

    def _run(self) -> None:
        fitted_at = checked_at = time.monotonic()
        while not self._ended.wait(_FAILURE_POLL_S):
            self.failure = read_failure(self._failure_key)
            now = time.monotonic()
            if self.failure is None and now - checked_at >= _CAPACITY_POLL_S:
                checked_at = now
                if fits(self._resources.bundle, self._resources.min_workers):
                    fitted_at = now
                elif now - fitted_at > self._timeout_s:
                    self.failure = ShortfallError(
                        f"the cluster has had no room for {self._resources.min_workers} workers "
                        f"for {self._timeout_s:.0f} s; the same command continues when it has"
                    )
            if self.failure is not None:
                self._trainer.abort()
                return


def _fit(trainer: _Trainer, watch: _Watch) -> None:
    """Run the trainer until its workers have ended. Raises the error that made it fail."""
    try:
        with watch:
            trainer.fit()
        cause: Exception | None = None
    except RayError as error:
        cause = root_cause(error)
    except ray.train.TrainingFailedError as error:
        cause = _first_failure(error)

    failure = watch.read_failure() or cause
    watch.delete_failure()
    if failure is not None:
        raise failure


def _first_failure(error: Exception) -> Exception:
    """Return the error of the worker that failed first; the errors of the others follow from it.

    A worker that was killed has no time of failure. It comes first: it explains the broken
    connections of the others.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = [root_cause(failures[rank]) for rank in sorted(failures)]
    if not causes:
        cause = getattr(error, "controller_failure", error)
        if (recurring := recurring_error(cause)) is not None:
            return recurring
        return ShortfallError(f"the cluster did not keep the workers' resources: {cause}")

    return min(causes, key=lambda cause: getattr(cause, "failed_at", -math.inf))


def _run_worker(options: dict[str, Any]) -> None:
    """Train in one worker process.

    An error that would recur is recorded: later attempts then end at once, and the driver raises
    it. Nothing is reported to Ray Train: a report costs 2 s, and the run's folder has everything.
    """
    task: TrainTask = options["task"]
    log: LogSettings = options["log"]
    failure_key: str = options["failure_key"]
    if read_failure(failure_key) is not None:
        return

    _use_assigned_cores()
    group = Group(get_device())
    configure_worker_logging(log, run=task.run, rank=group.rank)
    try:
        train(task, group)
    except Exception as error:
        recurring = recurring_error(error)
        if recurring is not None:
            record_failure(failure_key, recurring)
            # All workers raise a shortfall together, and a single worker needs no end by Ray.
            # Another error may be this worker's alone: raising it makes Ray Train end the others.
            if group.size == 1 or isinstance(error, ShortfallError):
                return
        elif not isinstance(error, AfinarError):
            # Ray Train keeps only a thousand characters of the message; the note has the traceback.
            error.add_note(f"on rank {group.rank}\n{traceback.format_exc()}")
            error.failed_at = time.time()  # type: ignore[attr-defined]  # for `_first_failure`
        raise


def _use_assigned_cores() -> None:
    """Let torch use as many threads as Ray assigned cores to this worker."""
    import torch

    context = ray.get_runtime_context()
    cores = context.get_assigned_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(cores)))
