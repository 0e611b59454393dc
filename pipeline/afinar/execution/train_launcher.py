"""Launcher of training workers: Ray Train runs `training.worker.run_worker` in each of them."""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import ray.train
from ray._raylet import RAY_NODE_ID_KEY  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.train import RunConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController

# The classes that ray.train exports at run time; under these names mypy knows their types.
from ray.train.v2.api.config import FailureConfig, ScalingConfig

from afinar.config.base import cluster_address
from afinar.config.train import TrainConfig
from afinar.errors import AfinarError, RequestError, ShortfallError, StorageError
from afinar.execution import ray_log
from afinar.execution.failures import root_cause
from afinar.execution.session import (
    cluster_cores,
    cluster_gpus,
    fits,
    free_share,
    node_cores,
    ray_session,
    session_folder,
    wait_for_resources,
)
from afinar.execution.train_errors import recurring_error
from afinar.execution.train_failure import (
    TrainFailurePolicy,
    WorkerError,
    delete_failure,
    has_started,
    is_transient,
    new_failure_key,
    read_failure,
    record_failure,
    record_start,
)
from afinar.logs import LogSettings, configure_worker_logging, log_settings
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.hooks import Metrics, TrainHooks
from afinar.training.task import TrainTask, resolve_task
from afinar.training.worker import run_worker
from afinar.units.own_process import claim_process, keep_freed_memory

logger = logging.getLogger(__name__)

# Ray Train's timeout of one attempt to reserve the workers' resources. Its controller answers no
# request, such as to abort, while it waits for them.
_GROUP_START_S: Final = 30.0
_MAX_START_FAILURES: Final = 3
_WAIT_LOG_S: Final = 30.0
# The controller, an async actor, waits for remote calls on purpose: no warning.
_CONTROLLER_ENVIRONMENT: Final = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
_RESOURCE_POLL_S: Final = 1.0
_FAILURE_POLL_S: Final = 1.0
_CAPACITY_POLL_S: Final = 5.0
_ABORT_S: Final = 10.0
_JOIN_S: Final = 2.0


def launch_on_ray(
    task: TrainTask, should_stop: Callable[[Metrics], bool] = lambda _: False
) -> None:
    """Run the workers of a training until all have ended; a `training.driver.Launcher`.

    A worker or a machine that dies is replaced, and the training resumes from its newest
    checkpoint. Workers wait for room on a busy cluster as long as it takes. Several trainings can
    run at once, in threads or processes; threads share the connection of an enclosing
    `ray_session`. `should_stop` is called with the metrics of each epoch in the process of rank 0;
    True ends the training.

    Raises the error of the worker that failed first, RequestError or ShortfallError if the cluster,
    busy or idle, cannot hold the workers.
    """
    config = task.config
    cores = config.workers * config.cores_per_worker
    stays_connected = ray.is_initialized()
    is_shared = stays_connected or cluster_address(config.address) is not None
    with ray_session(config.address, cores, dashboard=True):
        resources = _worker_resources(config, is_shared)
        task = resolve_task(task, resources.workers, on_gpu=resources.has_gpu)
        _set_ray_train_options()
        failure_key = new_failure_key()
        trainer = _Trainer(
            _run_worker,
            train_loop_config={
                "task": task,
                "log": log_settings(),
                "failure_key": failure_key,
                "should_stop": should_stop,
            },
            scaling_config=resources.scaling_config(),
            torch_config=TorchConfig(backend=resources.backend),
            run_config=_run_config(task),
        )
        trainer.failure_policy = TrainFailurePolicy(_failure_config(config), failure_key)
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
            _save_ray_log(task)


class _Trainer(TorchTrainer):
    """TorchTrainer that any thread can run and abort, and that tries only transient errors again.

    It leaves the handler of SIGINT alone. `controller` is the actor that runs the training.
    """

    controller: Any = None
    failure_policy: TrainFailurePolicy

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        """Do what the base class does, with our failure policy, and keep the controller's handle.

        The base class hands out the handle in the main thread only.
        """
        options["failure_policy"] = self.failure_policy
        here = ray.get_runtime_context().get_node_id()
        controller_class: Any = ray.remote(
            num_cpus=0,
            label_selector={RAY_NODE_ID_KEY: here},
            runtime_env={"env_vars": get_env_vars_to_propagate() | _CONTROLLER_ENVIRONMENT},
        )(TrainController)
        self.controller = controller_class.remote(**options)
        ray.get(self.controller.run.remote())
        return ray.get(self.controller.get_result.remote())

    def abort(self) -> None:
        """End the workers; `fit` then raises an error of Ray."""
        if self.controller is not None:
            with suppress(RayError):
                ray.get(self.controller.abort.remote(), timeout=_ABORT_S)


def _set_ray_train_options() -> None:
    # Ray Train's patched print() would show every line twice.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # By default a dead worker is noticed only after 2 s, and a report holds the workers as long if
    # the one before has not been fetched.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_GROUP_START_S))
    # Ray's dashboard lists the training.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")


@dataclass(frozen=True, kw_only=True)
class _WorkerResources:
    """Number of workers, the fewest that may train, and the resources (`bundle`) of each."""

    workers: int
    min_workers: int
    bundle: Mapping[str, float]

    @property
    def has_gpu(self) -> bool:
        return "GPU" in self.bundle

    @property
    def backend(self) -> str:
        """Name of the backend of collectives. A single worker has nobody to send to by NCCL."""
        return "nccl" if self.has_gpu and self.workers > 1 else "gloo"

    def describe(self) -> str:
        """Return the resources of the fewest workers in words."""
        gpu = " and a GPU" if self.has_gpu else ""
        return f"{self.min_workers} x {self.bundle['CPU']:g} cores{gpu}"

    def scaling_config(self) -> ScalingConfig:
        """Return Ray Train's form; elastic if fewer workers may train."""
        elastic = self.min_workers < self.workers
        return ScalingConfig(
            num_workers=(self.min_workers, self.workers) if elastic else self.workers,
            use_gpu=self.has_gpu,
            resources_per_worker=dict(self.bundle),
            elastic_resize_monitor_interval_s=30.0,
        )


def _worker_resources(config: TrainConfig, is_shared: bool) -> _WorkerResources:
    """Return the workers' resources once the cluster, busy or idle, can hold the fewest workers.

    `is_shared` is true if other jobs may run on the same Ray. Raises RequestError if a cluster that
    cannot grow is too small, ShortfallError if a cluster that can does not grow in time.
    """
    gpus, cores = cluster_gpus(), cluster_cores()
    workers = config.workers or gpus or min(2, cores)
    min_workers = config.min_workers or workers
    # Half of what is free on a shared Ray, so that the next job finds room too.
    share = free_share() / 2 if is_shared else 1.0
    nodes = [share * node for node in node_cores()]
    cpus = config.cores_per_worker or (1 if gpus else _cpus_per_worker(workers, nodes))
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


def _cpus_per_worker(workers: int, nodes: Sequence[float]) -> int:
    """Return the largest number of cores that each worker can have on nodes of so many, at least 1.

    Example: 2 workers on nodes of 3 and 5 cores can have 3 each; 4 each would need two nodes of 4.
    """
    candidates = range(int(sum(nodes)) // workers, 1, -1)
    return next((cpus for cpus in candidates if sum(n // cpus for n in nodes) >= workers), 1)


def _failure_config(config: TrainConfig) -> FailureConfig:
    return FailureConfig(
        max_failures=config.max_failures, controller_failure_limit=_MAX_START_FAILURES
    )


def _run_config(task: TrainTask) -> RunConfig:
    """Return Ray Train's options.

    Its files must be where all workers can read them: in the folder of a local Ray, else in the
    run's folder.
    """
    config = task.config
    options: dict[str, Any] = {
        # A new name for each launch: Ray Train must not resume, the training does so itself.
        "name": f"ray-train-{uuid.uuid4().hex[:12]}",
        "failure_config": _failure_config(config),
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


def _save_ray_log(task: TrainTask) -> None:
    """Write what Ray's processes printed; the training does not depend on it."""
    try:
        ray_log.save(open_store(task.config.models), task.run)
    except StorageError as error:
        logger.debug(f"could not write Ray's log: {error}")


class _Watch:
    """Thread that aborts a training which cannot succeed: Ray Train itself would try on.

    Aborted are a training with a recorded failure, and one whose fewest workers the cluster, busy
    or idle, has not been able to hold for `timeout_s`. `failure` is the reason. Until the workers
    have started, the thread logs what they wait for.
    """

    def __init__(
        self, trainer: _Trainer, failure_key: str, resources: _WorkerResources, timeout_s: float
    ) -> None:
        self.failure: AfinarError | WorkerError | None = None
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

    def read_failure(self) -> AfinarError | WorkerError | None:
        """Return the error for which the training was or would be aborted, None if none."""
        return self.failure or read_failure(self._failure_key)

    def delete_records(self) -> None:
        """Delete what the launch has recorded in Ray's control service."""
        delete_failure(self._failure_key)

    def _run(self) -> None:
        fitted_at = checked_at = logged_at = time.monotonic()
        started = False
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

            started = started or has_started(self._failure_key)
            if not started and now - logged_at >= _WAIT_LOG_S:
                logged_at = now
                logger.info(
                    f"waiting until {self._resources.describe()} are free and the workers started"
                )


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
    watch.delete_records()
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

    An error that is not transient is recorded: Ray Train then ends the training, and the driver
    raises the recorded error.
    """
    task: TrainTask = options["task"]
    log: LogSettings = options["log"]
    failure_key: str = options["failure_key"]

    claim_process()
    _use_assigned_cores()
    group = Group(get_device())
    group.bind_device()
    configure_worker_logging(log, run=task.run, rank=group.rank)
    if group.is_rank_zero:
        record_start(failure_key)
    try:
        run_worker(task, group, _hooks(group, options["should_stop"]))
    except Exception as error:
        if not is_transient(error):
            record_failure(failure_key, error)
        if not isinstance(error, AfinarError):
            # Ray Train keeps only a thousand characters of the message; the note has the traceback.
            error.add_note(f"on rank {group.rank}\n{traceback.format_exc()}")
            error.failed_at = time.time()  # type: ignore[attr-defined]  # for `_first_failure`
        raise


def _hooks(group: Group, should_stop: Callable[[Metrics], bool]) -> TrainHooks:
    def on_epoch_end(metrics: Metrics) -> bool:
        """Report to Ray Train without a checkpoint: afinar keeps its own."""
        ray.train.report(dict(metrics))
        return group.is_rank_zero and should_stop(metrics)

    return TrainHooks(
        on_epoch_end=on_epoch_end,
        is_preempted=lambda: ray.train.get_preemption_info() is not None,
    )


def _use_assigned_cores() -> None:
    """Let torch use as many threads as Ray assigned cores to this worker."""
    import torch

    context = ray.get_runtime_context()
    cores = context.get_assigned_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(cores)))
    keep_freed_memory()
