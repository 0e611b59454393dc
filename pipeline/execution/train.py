"""Ray Train around the training job: as many workers as asked for, each running the same plain function."""

from __future__ import annotations

import os
import time
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipeline.errors import AfinarError, RequestError
from pipeline.execution.executor import unwrapped
from pipeline.execution.session import cluster_cores, cluster_gpus, ray_session
from pipeline.models.versions import ModelVersion
from pipeline.training.group import Group
from pipeline.training.job import TrainOutcome, TrainTask, publish, read_outcome, train


def train_on_ray(task: TrainTask) -> tuple[ModelVersion, TrainOutcome, float]:
    """Train on the cluster and publish. Returns the version, what was measured, and the seconds it took."""
    config = task.config
    started = time.monotonic()
    with ray_session(config.address, config.workers):
        gpus = cluster_gpus()
        workers = config.workers or gpus or min(2, cluster_cores())
        _require_room(workers, gpus)
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"task": task},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(gpus)),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=_bookkeeping(task),
        )
        _fit(trainer)
    seconds = time.monotonic() - started
    outcome = read_outcome(task)
    return publish(task, outcome, seconds), outcome, seconds


def _require_room(workers: int, gpus: int) -> None:
    """Ray Train would wait for ever for workers that the cluster, as it is, cannot hold."""
    room = gpus or cluster_cores()
    if workers > room:
        kind = "GPUs" if gpus else "cores"
        raise RequestError(
            f"--workers {workers}: the cluster has {room} {kind}; give at most that, or a larger cluster"
        )


def _bookkeeping(task: TrainTask) -> RunConfig:
    """Ray Train's own files go beside ours into the run's folder, which every node reaches as it reaches the models."""
    folder = f"{task.config.models}/runs/{task.run}"
    if not folder.startswith("s3://"):
        return RunConfig(name="ray-train", storage_path=folder)
    import pyarrow.fs
    import s3fs

    # Through s3fs, so that credentials and endpoint come from each process's environment here too.
    remote = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(s3fs.S3FileSystem()))
    return RunConfig(name="ray-train", storage_path=folder.removeprefix("s3://"), storage_filesystem=remote)


def _worker(config: dict[str, Any]) -> None:
    train(config["task"], Group(get_device()))


def _fit(trainer: TorchTrainer) -> None:
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it shows every line twice
    try:
        trainer.fit()
    except RayError as error:
        raise unwrapped(error) from error
    except ray.train.TrainingFailedError as error:
        raise _first_failure(error) from error


def _first_failure(error: Exception) -> Exception:
    """One worker's own error instead of Ray Train's list: ours where there is one, since the others follow from it."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    own = [unwrapped(failures[rank]) for rank in sorted(failures)]
    return next((one for one in own if isinstance(one, AfinarError)), own[0] if own else error)
