"""Repetition of a training with several seeds: how much of an accuracy is chance.

The repeats are trials: they are compared on validation, and the test split is used once, for the
one that is published.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from afinar.config.train import TrainConfig
from afinar.evaluation.intervals import half_interval
from afinar.training.checkpoint import RankedEpoch
from afinar.training.driver import (
    Launcher,
    TrainOutcome,
    Trial,
    discard_trial,
    publish_trial,
    run_trial,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Metrics of one seed on the validation split, at the epoch that was chosen."""

    seed: int
    epoch: int
    top1: float
    loss: float
    macro_f1: float


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Metrics of all seeds.

    `low` to `high` is the 95 % interval of the mean top-1 (Student's t), None for a single seed.
    """

    seeds: list[Repeat]
    published_seed: int
    mean: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def run_repeats(
    config: TrainConfig,
    launch: Launcher,
    on_published: Callable[[TrainOutcome], None] = lambda _: None,
) -> tuple[TrainOutcome, Repeats]:
    """Train with the seeds `config.seed` and those after it, and publish the best by validation.

    A repeat that was interrupted is resumed by the same request, and a complete one is not trained
    again. Raises what `run_training` raises.
    """
    trials: list[Trial] = []
    deadline = time.monotonic() + 60 * config.time_limit
    for seed in range(config.seed, config.seed + config.repeats):
        left = (deadline - time.monotonic()) / 60 / (config.repeats - len(trials))
        limit = max(left, 1e-3) if config.time_limit else 0.0
        trial = run_trial(replace(config, seed=seed, time_limit=limit), launch)
        trials.append(trial)
        logger.info(
            f"repeat {len(trials)} of {config.repeats}, seed {seed}: validation top-1 "
            f"{_metrics(trial)['top1']:.1%}"
        )

    best = min(trials, key=lambda trial: _as_ranked(trial).rank(config.select_by))
    outcome = publish_trial(best, launch, on_published)
    for trial in trials:
        if trial is not best:
            discard_trial(trial)
    return outcome, summarize(trials, best)


def summarize(trials: list[Trial], best: Trial) -> Repeats:
    """Return the metrics of trials of which `best` is published."""
    seeds = [
        Repeat(
            seed=trial.task.config.seed,
            epoch=trial.result.best[0]["epoch"],
            top1=_metrics(trial)["top1"],
            loss=_metrics(trial)["loss"],
            macro_f1=_metrics(trial)["macro_f1"],
        )
        for trial in trials
    ]
    accuracies = [repeat.top1 for repeat in seeds]
    mean, half = statistics.fmean(accuracies), half_interval(accuracies)
    return Repeats(
        seeds=seeds,
        published_seed=best.task.config.seed,
        mean=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
    )


def _as_ranked(trial: Trial) -> RankedEpoch:
    return RankedEpoch.of(trial.result.best[0]["epoch"], _metrics(trial))


def _metrics(trial: Trial) -> dict[str, Any]:
    metrics: dict[str, Any] = trial.result.metrics["val"]
    return metrics
