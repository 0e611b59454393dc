"""Resolution of hyperparameters that are left to their defaults.

Needs torch only for backbones of timm, whose family depends on their layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from afinar.config.strict import Count
from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.models.networks.backbone_info import Family
from afinar.models.networks.catalogue import require_backbone
from afinar.training.sampler import steps_per_epoch

# Peak learning rates for batches of 32. One rate for all of a pretrained backbone, by family:
_BACKBONE_RATE: Final[dict[str, dict[Family, float]]] = {
    "adamw": {"batchnorm": 2e-3, "plain": 1e-4, "transformer": 1e-4},
    "adam": {"batchnorm": 2e-3, "plain": 1e-4, "transformer": 1e-4},
    "rmsprop": {"batchnorm": 2e-4, "plain": 2e-5, "transformer": 2e-5},
    "sgd": {"batchnorm": 2e-2, "plain": 2e-3, "transformer": 2e-3},
}
# of a head on a frozen backbone, from random values; a solved head gets a tenth:
_FROZEN_RATE: Final = {"adamw": 1e-2, "adam": 1e-2, "rmsprop": 1e-3, "sgd": 1e-1}
# and of a whole network from random values.
_SCRATCH_RATE: Final = {"adamw": 1e-3, "adam": 1e-3, "rmsprop": 1e-3, "sgd": 5e-2}

_REFERENCE_BATCH: Final = 32
_RANDOM_HEAD_RATE: Final = 10.0
_LAYER_DECAY: Final[dict[Family, float]] = {"batchnorm": 1.0, "plain": 1.0, "transformer": 0.75}
_MIN_EPOCHS: Final = 10
_MIN_STEPS: Final = 300

_CPU_BATCH: Final = 32  # samples per worker
_GPU_BATCH: Final = 64
_MIN_WORKER_BATCH: Final = 2  # BatchNorm needs two
_SMALL_WORKER_BATCH: Final = 4
_MIN_STEPS_PER_EPOCH: Final = 10


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The fields of a configuration that `resolve` sets.

    Runs that were begun before `head_rate` was added have none, and get the default.
    """

    batch_size: Count
    epochs: Count
    learning_rate: float
    layer_decay: float
    head_rate: float = 0.0


STEP_OPTIONS: Final = frozenset(
    {field.name for field in fields(Resolved)}
    | {"optimizer", "schedule", "warmup", "weight_decay", "clip_norm", "ema", "accumulate"}
)
"""Options that only steps use: a training that is a solved head does not."""


def resolve(
    config: TrainConfig,
    samples: int,
    workers: int,
    *,
    on_gpu: bool,
    measured_batch: int = _GPU_BATCH,
) -> TrainConfig:
    """Return the configuration with a value for each field of `Resolved` that is left open.

    `samples` is the number of training samples in an epoch, `measured_batch` the number of samples
    at which a GPU computes a step best. Raises RequestError if a step has fewer than two samples
    per worker.
    """
    family = require_backbone(config.backbone).family
    if config.has_auto_batch:
        batch_size = _batch_size(samples, workers, measured_batch if on_gpu else _CPU_BATCH)
    else:
        batch_size = config.samples_per_step
    _check_batch(samples, batch_size, workers, config.accumulate)
    steps = steps_per_epoch(samples, batch_size)
    epochs = max(_MIN_EPOCHS, math.ceil(_MIN_STEPS / steps))
    has_random_head = (
        not config.solves_head
        and not config.has_weights_model
        and config.regime_kind in {"last", "full", "auto"}
    )

    return replace(
        config,
        batch_size=batch_size,
        epochs=epochs if config.epochs == "auto" else config.epochs,
        learning_rate=config.learning_rate or _learning_rate(config, family, batch_size),
        head_rate=config.head_rate
        or (_RANDOM_HEAD_RATE if has_random_head and config.weights != "none" else 1.0),
        layer_decay=config.layer_decay or default_layer_decay(config),
    )


def default_layer_decay(config: TrainConfig) -> float:
    """Return the layer decay of the backbone's family."""
    return _LAYER_DECAY[require_backbone(config.backbone).family]


def is_resolved(config: TrainConfig) -> bool:
    """Return True if `resolve` would change nothing."""
    values = resolved_values(config)
    return "auto" not in values.values() and all(values.values())


def resolved_values(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of `Resolved` with their values."""
    return {field.name: getattr(config, field.name) for field in fields(Resolved)}


def used_options(options: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Return the options that a training of so many epochs used, for its record."""
    if epochs or options.get("is_cut"):
        return options
    return {name: value for name, value in options.items() if name not in STEP_OPTIONS}


def format_settings(settings: dict[str, Any], epochs: int) -> str:
    """Return the values of `resolved_values` as text, for a training of so many epochs."""
    if not epochs:
        return "head solved by logistic regression on the features, no epoch"
    rate = settings["learning_rate"]
    count = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    text = f"{count}, batch size {settings['batch_size']}, learning rate {rate:.2g}"
    if settings["head_rate"] != 1:
        text += f" ({rate * settings['head_rate']:.2g} for the head)"
    if settings["layer_decay"] != 1:
        text += f", layer decay {settings['layer_decay']:g}"
    return text


def largest_batch(samples: int, workers: int) -> int:
    """Return the largest batch that is chosen by itself: a tenth of the samples, or a few more."""
    floor = max(_REFERENCE_BATCH, _SMALL_WORKER_BATCH * workers)
    return max(floor, samples // _MIN_STEPS_PER_EPOCH)


def _batch_size(samples: int, workers: int, worker_batch: int) -> int:
    """Return `worker_batch` samples per worker, but at most a tenth of the samples.

    The bound keeps ten steps in an epoch. It ends at 32 samples per step and at 4 per worker.

    Example, with 32 per worker:

        samples   workers   batch
            583         1      32
         30,000         8     256
            583         8      58   a tenth of the samples
            300        16      64   4 per worker
    """
    return min(workers * worker_batch, largest_batch(samples, workers))


def _check_batch(samples: int, batch_size: int, workers: int, parts: int) -> None:
    """Raise RequestError if a worker, or a part of its share, has fewer than two samples."""
    smallest = samples // steps_per_epoch(samples, batch_size)
    if smallest < _MIN_WORKER_BATCH * workers * parts:
        raise RequestError(
            f"{workers} workers need at least {2 * parts} samples each in every step, and the "
            f"smallest step has {smallest}: give fewer --workers, or a larger --batch-size"
            f"{', or a smaller --accumulate' if parts > 1 else ''}"
        )


def _learning_rate(config: TrainConfig, family: Family, batch_size: int) -> float:
    """Return the peak rate, scaled with the batch size.

    The noise of a gradient falls with the square root of the batch. Adam divides by that noise, so
    its rate grows with the square root (Malladi et al. 2022, arXiv 2205.10287); that of SGD grows
    linearly (Goyal et al. 2017, arXiv 1706.02677).
    """
    if config.regime == "scratch" or config.weights == "none":
        rate = _SCRATCH_RATE[config.optimizer]
    elif config.regime == "frozen":
        rate = _FROZEN_RATE[config.optimizer] * (0.1 if config.solves_head else 1.0)
    else:
        rate = _BACKBONE_RATE[config.optimizer][family]
    ratio = batch_size / _REFERENCE_BATCH
    return rate * (ratio if config.optimizer == "sgd" else math.sqrt(ratio))
