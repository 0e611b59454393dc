"""Training driver: plan, launch the workers, publish the model version, clean up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from afinar.config.train import TrainConfig
from afinar.errors import AfinarError, DivergedError, RequestError, ShortfallError
from afinar.models.registry.versions import ModelVersion
from afinar.storage.names import new_run
from afinar.storage.open import open_store
from afinar.training.checkpoint import has_checkpoint
from afinar.training.publish import TrainResult, cleanup_after_publish, publish, read_result
from afinar.training.task import TrainTask, give_up, plan_training

logger = logging.getLogger(__name__)

Launcher = Callable[[TrainTask], None]
"""Runs `training.worker.train` in all workers of a task and returns when they have ended."""


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """Outcome of a training: the published version, and the result of the workers.

    `models` is the absolute URI of the model's history. `run` is the run's folder in it, such as
    `runs/20261126T120000Z-1a2b3c`. `seconds` is the time from launch to publication.
    """

    models: str
    run: str
    version: ModelVersion
    result: TrainResult
    seconds: float


def run_training(
    config: TrainConfig,
    launch: Launcher,
    run: str | None = None,
    on_published: Callable[[TrainOutcome], None] = lambda _: None,
) -> TrainOutcome:
    """Train a classifier and publish it as the next model version.

    An interrupted run of the same request is resumed; otherwise the run is named `run`, by default
    after the current time. `on_published` is called after the version is published and before the
    resume marker is deleted: if it fails, or if the process is killed, the same request calls it
    again and publishes no second version. The caller writes the report there.

    Raises RequestError for a request that cannot be carried out, and what `launch` raises.
    """
    task = plan_training(config, run or new_run())
    started = time.monotonic()

    # There is a result already if an earlier driver died after its workers had ended.
    result = read_result(task)
    if result is None:
        _launch(task, launch)
        result = read_result(task)
    if result is None:
        raise ShortfallError(
            f"the workers of run {task.run} ended without a result: look into Ray's logs"
        )

    seconds = time.monotonic() - started
    version = publish(task, result, seconds)
    outcome = TrainOutcome(
        models=task.config.models,
        run=version.lineage["run"],
        version=version,
        result=result,
        seconds=seconds,
    )
    on_published(outcome)
    cleanup_after_publish(task, result)
    return outcome


def _launch(task: TrainTask, launch: Launcher) -> None:
    """Run the workers. A request that fails again in every attempt leaves no unfinished run.

    Another job may train the same run. If it completes the run first, it deletes checkpoints that
    these workers may still need; then their error says nothing.
    """
    try:
        launch(task)
    except AfinarError as error:
        if read_result(task) is not None:
            logger.info(f"run {task.run} was completed by another job ({error})")
            return
        store = open_store(task.config.models)
        is_refused = isinstance(error, RequestError) and not task.resumed
        if isinstance(error, DivergedError) or (is_refused and not has_checkpoint(store, task.run)):
            give_up(store, task)
        raise
