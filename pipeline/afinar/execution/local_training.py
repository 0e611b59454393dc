"""Training by one worker in the driver's own process, without Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import torch

from afinar.execution.choice import choose_for_training, this_machine
from afinar.execution.executor import asks_for_ray
from afinar.execution.train_errors import is_transient, recurring_error
from afinar.training.distributed import Group
from afinar.training.hooks import Metrics, TrainHooks
from afinar.training.task import TrainTask, resolve_task
from afinar.training.worker import run_worker
from afinar.units.own_process import keep_freed_memory

logger = logging.getLogger(__name__)

_RETRY_S: Final = 2.0  # before another attempt: the store has already been tried several times


def launch(task: TrainTask, should_stop: Callable[[Metrics], bool] = lambda _: False) -> None:
    """Run the workers of a training: one in this process, or several on Ray.

    A `training.driver.Launcher`. `should_stop` and errors are those of `launch_on_ray`.
    """
    config = task.config
    choice = choose_for_training(
        task.epoch_samples,
        workers=config.workers,
        min_workers=config.min_workers,
        asks_for_ray=asks_for_ray(config.address),
        machine=this_machine(),
    )
    if choice.without_ray:
        logger.info(choice.reason)
        train_here(task, should_stop)
        return

    from afinar.execution.train_launcher import launch_on_ray

    launch_on_ray(task, should_stop)


def train_here(task: TrainTask, should_stop: Callable[[Metrics], bool] = lambda _: False) -> None:
    """Train in this process, on its GPU if it has one.

    After an error that may pass the training resumes from its newest checkpoint, `--max-failures`
    times. If the process is killed, the same command resumes it.
    """
    config = task.config
    group = Group("cuda" if torch.cuda.is_available() else "cpu", alone=True)
    # torch's own number respects OMP_NUM_THREADS, and knows nothing of a container's limit.
    cores = min(torch.get_num_threads(), this_machine().cores)
    torch.set_num_threads(config.cores_per_worker or cores)
    keep_freed_memory()
    task = resolve_task(task, 1, on_gpu=group.device.type == "cuda")
    hooks = TrainHooks(on_epoch_end=should_stop)

    for failures in range(1, config.max_failures + 2):
        try:
            run_worker(task, group, hooks)
            return
        except Exception as error:
            if not is_transient(error):
                if (recurring := recurring_error(error)) is not None:
                    raise recurring from error
                raise
            if failures > config.max_failures:
                raise
            logger.info(f"the training is resumed from its newest checkpoint: {error}")
            time.sleep(_RETRY_S)
