"""Training driver: plan, launch the workers, publish the model version, clean up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from afinar.config.train import TrainConfig
from afinar.errors import (
    AfinarError,
    DivergedError,
    NoSpaceError,
    RequestError,
    ShortfallError,
)
from afinar.models.registry.versions import ModelVersion
from afinar.storage.names import new_run
from afinar.storage.open import open_store
from afinar.training.checkpoint import has_steps
from afinar.training.promotion import ChampionChoice, choose_champion
from afinar.training.publish import (
    TrainResult,
    TrialResult,
    cleanup_after_publish,
    keep_unpublished,
    publish,
    read_result,
    read_trial,
)
from afinar.training.task import TrainTask, give_up, plan_training

logger = logging.getLogger(__name__)

Launcher = Callable[[TrainTask], None]
"""Runs `training.worker.run_worker` in all workers of a task and returns when they have ended."""

Result = TypeVar("Result", bound=TrialResult)


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """Outcome of a training: the published version, and the result of the workers.

    `models` is the absolute URI of the model's history. `run` is the run's folder in it, such as
    `runs/20261126T120000Z-1a2b3c`. `seconds` is the time from launch to publication. `champion`
    says whether the version was promoted, and why.
    """

    models: str
    run: str
    version: ModelVersion
    result: TrainResult
    seconds: float
    champion: ChampionChoice


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Outcome of a trial: a training that is not published and has not used the test split.

    `result` has metrics on validation alone. The weights stay in the run's folder until
    `publish_trial` or `discard_trial`. `seconds` is the time from launch to the result.
    """

    task: TrainTask
    result: TrialResult
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
    return _complete(plan_training(config, run or new_run()), launch, on_published)


def run_trial(config: TrainConfig, launch: Launcher, run: str | None = None) -> Trial:
    """Train a classifier without publishing it and without using the test split.

    An interrupted trial of the same request is resumed; the result of a complete one is returned.
    Several trials can run at once, in threads or processes. Raises what `run_training` raises.
    """
    task = plan_training(config, run or new_run(), is_trial=True)
    started = time.monotonic()
    result = _launch(task, launch, read_trial)
    return Trial(task=task, result=result, seconds=time.monotonic() - started)


def publish_trial(
    trial: Trial,
    launch: Launcher,
    on_published: Callable[[TrainOutcome], None] = lambda _: None,
) -> TrainOutcome:
    """Evaluate a trial on the test split, without training on, and publish it.

    `launch` and `on_published` are those of `run_training`.
    """
    task = replace(trial.task, is_trial=False, last_epoch=trial.result.epochs)
    return _complete(task, launch, on_published, trial.seconds)


@dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """A training that is complete and evaluated on the test split, and not published.

    `publish_run` publishes it. `seconds` is the time from launch to the result.
    """

    task: TrainTask
    result: TrainResult
    seconds: float


def run_unpublished(config: TrainConfig, launch: Launcher) -> EvaluatedRun:
    """Train and evaluate a classifier, as `run_training` does, without publishing it.

    An interrupted run of the same request is resumed, and a complete one is returned. The run is
    then no longer listed as unfinished; it stays until it is published or dropped.
    """
    task = plan_training(config, new_run())
    started = time.monotonic()
    result = _launch(task, launch, read_result)
    keep_unpublished(task, result)
    return EvaluatedRun(task=task, result=result, seconds=time.monotonic() - started)


def run_to_epoch(config: TrainConfig, launch: Launcher, epoch: int) -> Trial:
    """Train up to the end of an epoch, as a trial whose schedule is that of all epochs.

    The same request with a later epoch goes on from there, and `run_unpublished` to the end. A run
    that is further already is returned as it is.
    """
    task = replace(plan_training(config, new_run(), is_trial=True), last_epoch=epoch)
    started = time.monotonic()
    result: TrialResult | None = read_result(task)
    if result is None:
        result = _launch(task, launch, read_trial)
    return Trial(task=task, result=result, seconds=time.monotonic() - started)


def evaluate_trial(trial: Trial, launch: Launcher) -> EvaluatedRun:
    """Evaluate a trial on the test split, without training on and without publishing it."""
    task = replace(trial.task, is_trial=False, last_epoch=trial.result.epochs)
    started = time.monotonic()
    result = _launch(task, launch, read_result)
    return EvaluatedRun(
        task=task, result=result, seconds=trial.seconds + time.monotonic() - started
    )


def discard_run(run: EvaluatedRun) -> None:
    """Delete a run that is not published."""
    give_up(open_store(run.task.config.models), run.task)


def publish_run(
    run: EvaluatedRun, on_published: Callable[[TrainOutcome], None] = lambda _: None
) -> TrainOutcome:
    """Publish a run, and clean up. A version that has it already is returned.

    `on_published` is that of `run_training`.
    """
    task = run.task
    version = publish(task, run.result, run.seconds, sets_champion=False)
    champion = choose_champion(open_store(task.config.models), version, task.config.promote)
    outcome = TrainOutcome(
        models=task.config.models,
        run=version.lineage["run"],
        version=version,
        result=run.result,
        seconds=run.seconds,
        champion=champion,
    )
    on_published(outcome)
    cleanup_after_publish(task, run.result)
    return outcome


def discard_trial(trial: Trial) -> None:
    """Delete a trial with its weights."""
    give_up(open_store(trial.task.config.models), trial.task)


def _complete(
    task: TrainTask,
    launch: Launcher,
    on_published: Callable[[TrainOutcome], None],
    seconds_before: float = 0.0,
) -> TrainOutcome:
    """Train what is left of a run, publish it and clean up."""
    started = time.monotonic()
    result = _launch(task, launch, read_result)
    seconds = seconds_before + time.monotonic() - started
    return publish_run(EvaluatedRun(task=task, result=result, seconds=seconds), on_published)


def _launch(
    task: TrainTask, launch: Launcher, read: Callable[[TrainTask], Result | None]
) -> Result:
    """Run the workers unless they have ended already, and return the result that they wrote.

    There is a result already if an earlier driver died after its workers had ended. A request that
    fails again in every attempt leaves no unfinished run, unless steps of it are saved: a full disk
    or memory does not make them useless.

    Another job may train the same run. If it completes the run first, it deletes checkpoints that
    these workers may still need; then their error says nothing.
    """
    result = read(task)
    if result is not None:
        return result
    try:
        launch(task)
    except AfinarError as error:
        result = read(task)
        if result is not None:
            logger.info(f"run {task.run} was completed by another job ({error})")
            return result
        store = open_store(task.config.models)
        is_refused = isinstance(error, RequestError | NoSpaceError) and not task.resumed
        if isinstance(error, DivergedError) or (is_refused and not has_steps(store, task.run)):
            give_up(store, task)
        raise

    result = read(task)
    if result is None:
        raise ShortfallError(
            f"the workers of run {task.run} ended without a result: look into Ray's logs"
        )
    return result
