"""Ray Train around the training job: as many workers as asked for, each running the same plain function."""

from __future__ import annotations

import _thread
import math
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray.train
from ray.exceptions import RayError
from ray.train import RunConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.config import (
    FailureConfig,
    ScalingConfig,
)  # ray.train's own names, with their types

from afinar.config.train import TrainConfig
from afinar.errors import AfinarError, RequestError, ShortfallError, StorageError
from afinar.execution.failures import root_cause
from afinar.execution.session import (
    cluster_cores,
    cluster_gpus,
    fits,
    ray_session,
    wait_for_resources,
)
from afinar.models.registry.versions import ModelVersion
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.training.distributed import Group
from afinar.training.failure import read_failure, record_failure, withdraw_failure
from afinar.training.publish import TrainOutcome, publish, read_outcome
from afinar.training.task import TrainTask
from afinar.training.worker import train

_GROUP_START_S: Final = 60.0  # Ray Train's own patience with one attempt to start its workers
_ROOM_POLL_S: Final = 1.0
_WATCH_S: Final = 5.0


def train_on_ray(task: TrainTask) -> tuple[ModelVersion, TrainOutcome, float]:
    """Train on the cluster and publish. Returns the version, what was measured, and the seconds it took.

    A worker or a machine that is lost is replaced, and the training goes on from its newest checkpoint; so
    does a training whose driver was lost, when its command is run again.
    """
    started = time.monotonic()
    outcome = read_outcome(task)  # a driver that died between its workers' end and publishing
    if outcome is None:
        _run_workers(task)
        outcome = read_outcome(task)
    if outcome is None:
        raise ShortfallError(
            f"the workers of run {task.run} ended without an outcome: look into Ray's logs"
        )
    seconds = time.monotonic() - started
    return publish(task, outcome, seconds), outcome, seconds


def _run_workers(task: TrainTask) -> None:
    config = task.config
    store = open_store(config.models)
    withdraw_failure(store, task.run)
    with ray_session(config.address, config.workers * config.cores_per_worker, dashboard=True):
        scaling = _scaling(config)
        os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it shows every line twice
        os.environ.setdefault(
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1"
        )  # a lost worker is noticed sooner than in 2 s
        os.environ.setdefault(
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
            str(min(_GROUP_START_S, config.start_timeout_s)),
        )
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"task": task},
            scaling_config=scaling,
            torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
            run_config=_run_config(task),
        )
        with _deadline(store, task.run, scaling, config):
            _fit(trainer, store, task.run)
    failure = read_failure(store, task.run)
    if failure is not None:
        raise failure


@contextmanager
def _deadline(
    store: Store, run: str, scaling: ScalingConfig, config: TrainConfig
) -> Iterator[None]:
    """End a training whose cluster has shrunk below the fewest workers and does not grow again in time.

    Ray Train itself would wait without end for an elastic group.
    """
    fewest = (
        min(scaling.num_workers) if isinstance(scaling.num_workers, tuple) else scaling.num_workers
    )
    bundle: dict[str, float] = dict(scaling.resources_per_worker)  # type: ignore[arg-type]
    over = threading.Event()

    def watch() -> None:
        missing_since: float | None = None
        while not over.wait(_WATCH_S):
            if fits(bundle, fewest):
                missing_since = None
                continue
            missing_since = missing_since or time.monotonic()
            if time.monotonic() - missing_since > config.start_timeout_s:
                sentence = f"the cluster has had no room for {fewest} workers for {config.start_timeout_s:.0f} s"
                record_failure(
                    store, run, ShortfallError(f"{sentence}; the same command goes on when it has")
                )
                _thread.interrupt_main()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        raise read_failure(store, run) or KeyboardInterrupt from None
    finally:
        over.set()
        watcher.join()


def _scaling(config: TrainConfig) -> ScalingConfig:
    """How many workers with what; waits for the cluster to have room for the fewest that will do.

    Raises RequestError where the cluster, as it is, cannot grow, ShortfallError where it did not in time.
    """
    gpus, cores = cluster_gpus(), cluster_cores()
    workers = config.workers or gpus or min(2, cores)
    fewest = config.min_workers or workers
    each = config.cores_per_worker or (1 if gpus else _cpus_per_worker(workers, cores))
    bundle = {"CPU": each, **({"GPU": 1} if gpus else {})}
    if not wait_for_resources(bundle, fewest, config.address, config.start_timeout_s, _ROOM_POLL_S):
        have = f"{cluster_cores()} cores and {cluster_gpus()} GPUs"
        wanted = f"--workers {fewest} of {each} cores each"
        if config.address is None and "RAY_ADDRESS" not in os.environ:
            raise RequestError(
                f"{wanted}: this machine has {have}; give fewer, or the --address of a cluster"
            )
        raise ShortfallError(
            f"{wanted}: the cluster, with {have}, did not give them in {config.start_timeout_s:.0f} s"
        )
    return ScalingConfig(
        num_workers=(fewest, workers) if fewest < workers else workers,
        use_gpu=bool(gpus),
        resources_per_worker=bundle,
        elastic_resize_monitor_interval_s=30.0,
    )


def _cpus_per_worker(workers: int, cores: int) -> int:
    """The most cores that each of so many workers can have, nodes being of whatever size."""
    return next(
        (each for each in range(cores // workers, 1, -1) if fits({"CPU": each}, workers)), 1
    )


def _run_config(task: TrainTask) -> RunConfig:
    """Ray Train's own files go beside ours into the run's folder, which every node reaches as it reaches the models."""
    config = task.config
    # A new name each time: what Ray Train would take up of an interrupted run is ours to take up.
    common: dict[str, Any] = {
        "name": f"ray-train-{int(time.time())}",
        "failure_config": FailureConfig(
            max_failures=config.max_failures,
            controller_failure_limit=max(1, math.ceil(config.start_timeout_s / _GROUP_START_S)),
        ),
    }
    folder = f"{config.models}/runs/{task.run}"
    if not folder.startswith("s3://"):
        return RunConfig(storage_path=folder, **common)
    import pyarrow.fs
    import s3fs

    # Through s3fs, so that credentials and endpoint come from each process's environment here too.
    remote = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(s3fs.S3FileSystem()))
    return RunConfig(storage_path=folder.removeprefix("s3://"), storage_filesystem=remote, **common)


def _worker(config: dict[str, Any]) -> None:
    """One worker. An error that another attempt would meet again is left in the store, and no attempt follows it."""
    task: TrainTask = config["task"]
    store = open_store(task.config.models)
    if read_failure(store, task.run) is not None:
        return
    _use_own_cores()
    group = Group(get_device())
    try:
        train(
            task, group
        )  # reports nothing to Ray Train: that costs 2 s each time, and the run's folder has it all
    except AfinarError as error:
        if (
            type(error) is StorageError
        ):  # a store that was out of reach may be back for the next attempt
            raise
        record_failure(store, task.run, error)
        # All workers come to a shortfall at once; of other errors the rest may know nothing, and are to be ended.
        if group.size > 1 and not isinstance(error, ShortfallError):
            raise
    except Exception as error:
        error.add_note(
            f"on rank {group.rank}\n{traceback.format_exc()}"
        )  # Ray Train keeps a thousand characters of it
        error.failed_at = time.time()  # type: ignore[attr-defined]  # travels with it: the first failure has the earliest
        raise


def _use_own_cores() -> None:
    import torch

    cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(cores)))


def _fit(trainer: TorchTrainer, store: Store, run: str) -> None:
    try:
        trainer.fit()
    except (RayError, ray.train.TrainingFailedError) as error:
        known = read_failure(store, run)
        failed = root_cause(error) if isinstance(error, RayError) else _first_failure(error)
        raise (known or failed) from error


def _first_failure(error: Exception) -> Exception:
    """The error of the worker that failed first, instead of Ray Train's list: the others follow from it.

    A worker that was killed has no time of failure, and comes before those whose connections to it broke.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    own = [root_cause(failures[rank]) for rank in sorted(failures)]
    own.sort(key=lambda one: getattr(one, "failed_at", -math.inf))
    if not own:
        cause = getattr(error, "controller_failure", error)
        return ShortfallError(f"the cluster did not keep the workers' resources: {cause}")
    return own[0]
