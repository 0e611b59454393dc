"""Preparation of a training: initial weights, trained part, its step, solver of the head."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset
from afinar.errors import RequestError
from afinar.models.networks.compiler import require_compiler
from afinar.models.networks.network import Network, build_network
from afinar.models.networks.precision import use_bfloat16, use_float16
from afinar.models.networks.weights import find_weights, load_weights
from afinar.training.batches import Samples
from afinar.training.distributed import Group
from afinar.training.evaluator import Evaluator
from afinar.training.feature_cache import FeatureCache
from afinar.training.head_start import HeadSolver, solver_samples
from afinar.training.inputs import FeatureInputs, PixelInputs
from afinar.training.linear_probe import Objective
from afinar.training.mixing import Mixing
from afinar.training.optim import Optimizer
from afinar.training.parent import find_parent, load_parent, rows_of_parent
from afinar.training.steps import Loss, TrainStep, class_weights
from afinar.training.task import LabelledSamples, TrainTask

logger = logging.getLogger(__name__)


def common_precision(config: TrainConfig, group: Group) -> torch.dtype:
    """Return the precision that the hardware of every worker is fast at: all must compute alike."""
    if group.all_true(use_bfloat16(config.precision, group.device)):
        return torch.bfloat16
    if not group.all_true(use_float16(config.precision, group.device)):
        return torch.float32
    if group.device.type == "cpu" and group.is_rank_zero:
        logger.info("note: CPUs emulate float16, which is slower than float32")
    return torch.float16


class InitialNetwork(NamedTuple):
    """A network, and which classes have rows of the head of a published model, bool [classes]."""

    network: Network
    kept: NDArray[np.bool_]


def initial_network(task: TrainTask, group: Group) -> InitialNetwork:
    """Return the network with the same initial weights on every worker.

    Rank 0 loads pretrained weights over the random ones of the seed, then all workers copy its.
    """
    network, whole = build_network(task.architecture)
    config = task.config
    kept = np.zeros(len(task.classes), dtype=bool)
    parent = find_parent(config)
    if parent is not None:
        rows = rows_of_parent(parent, task.architecture, task.classes)
        kept = rows >= 0
        if group.is_rank_zero:
            load_parent(parent, network, rows)
            logger.info(
                f"weights: the model {config.weights}, with the rows of its head for {kept.sum()} "
                f"of {len(kept)} classes"
            )
    elif group.is_rank_zero:
        source = find_weights(config.weights, config.backbone)
        if source is not None:
            load_weights(source, whole, network.backbone)
            logger.info(f"weights: {source.description}")

    network.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    group.broadcast_parameters(network)
    return InitialNetwork(network, kept)


class TrainedPart(NamedTuple):
    """The trained module and its inputs, and `pixels`, the inputs of the whole network.

    `solver_samples` is the number of training samples that its head can be solved on, and `cache`
    has their features if the inputs are pixels. `is_solved_at_once` is true if no epoch can improve
    that solution.
    """

    module: nn.Module
    inputs: PixelInputs | FeatureInputs
    pixels: PixelInputs
    solver_samples: int
    is_solved_at_once: bool = False
    cache: FeatureCache | None = None


def trained_part(
    task: TrainTask,
    network: Network,
    dataset: Dataset,
    samples: LabelledSamples,
    group: Group,
    precision: torch.dtype,
    threads: int,
) -> TrainedPart:
    """Return the network with pixels as inputs, or its classifier with features as inputs.

    Features are computed once if the backbone is frozen and there is no augmentation, so that every
    epoch would compute the same ones, or a stated number of augmented views, and if they fit
    `--window-mb`. They come from the cache of the dataset as far as it has them.
    """
    config = task.config
    pixels = PixelInputs(dataset, task.input_view, config.augmentation, config.seed, group.device)
    linear = (layer for layer in network.classifier.modules() if isinstance(layer, nn.Linear))
    width, classes = next(linear).in_features, len(task.classes)
    feature_bytes = config.window_mb * 2**20
    count = solver_samples(len(samples.train), width, classes, feature_bytes, group.device.type)
    cache = FeatureCache(
        task=task,
        network=network,
        dataset=dataset,
        pixels=pixels,
        group=group,
        precision=precision,
        threads=threads,
    )
    if config.regime != "frozen" or (config.augmentation.any and not config.views):
        # The body of a published model is seldom used again: its features are not kept.
        kept = None if config.has_weights_model else cache
        return TrainedPart(network, pixels, pixels, count, cache=kept)

    splits = [samples.train, samples.validation]
    if precision == torch.float32:
        splits.append(samples.test)
    rows = np.concatenate([split.rows for split in splits])
    vectors = len(rows) + config.views * len(samples.train)
    if (config.views or config.refit) and 4 * width * vectors > feature_bytes:
        flag = f"--views {config.views}" if config.views else "--refit"
        raise RequestError(
            f"{flag}: {vectors} x {width} features do not fit --window-mb {config.window_mb}; give "
            "a larger --window-mb"
        )
    if 4 * width * vectors > feature_bytes:
        logger.info(
            f"note: {vectors} x {width} features do not fit --window-mb {config.window_mb}: "
            "computed in every epoch"
        )
        return TrainedPart(network, pixels, pixels, count)
    features = cache.load(rows)
    views = [cache.load(samples.train.rows, view) for view in range(config.views)]
    if views:
        # A solved head is solved on all views: fewer pictures fit the bounds.
        solved = solver_samples(
            len(views) * len(samples.train), width, classes, feature_bytes, group.device.type
        )
        count = min(len(samples.train), max(2, solved // len(views)))
        if group.is_rank_zero:
            logger.info(f"features: {_views_line(config, len(samples.train))}")
    if config.refit and count < len(samples.train):
        raise RequestError(
            f"--refit: the head can be solved on {count} of {len(samples.train)} training pictures "
            "only; give a larger --window-mb, or no --refit"
        )
    return TrainedPart(
        network.classifier,
        FeatureInputs(features, rows, views),
        pixels,
        count,
        count == len(samples.train),
    )


def _views_line(config: TrainConfig, pictures: int) -> str:
    use = "the head is solved on all of them"
    if not config.solves_head:
        use = f"epoch e uses view e modulo {config.views}"
    return (
        f"{config.views} augmented views ({config.augmentation.describe()}) of each of {pictures} "
        f"training pictures; {use}"
    )


def head_solver(
    task: TrainTask,
    network: Network,
    part: TrainedPart,
    samples: LabelledSamples,
    evaluator: Evaluator,
    group: Group,
    kept: NDArray[np.bool_],
) -> HeadSolver:
    """Return the solver of the head. `kept` is that of `InitialNetwork`."""
    config = task.config
    return HeadSolver(
        network=network,
        module=part.module,
        inputs=part.inputs,
        samples=samples,
        objective=Objective(
            len(task.classes),
            config.label_smoothing,
            # The mean over balanced draws is a mean over samples with balanced weights.
            class_weights(
                samples.train,
                len(task.classes),
                "balanced" if config.sampling == "balanced" else config.class_weights,
                group.device,
            ),
        ),
        evaluator=evaluator,
        group=group,
        count=part.solver_samples,
        seed=config.seed,
        threads=evaluator.num_loader_threads,
        precision=evaluator.precision,
        kept=kept,
        is_last=config.regime == "frozen",
        select_by=config.select_by,
        cache=part.cache,
    )


def train_step(
    task: TrainTask,
    part: TrainedPart,
    samples: Samples,
    optimizer: Optimizer,
    group: Group,
    precision: torch.dtype,
) -> TrainStep:
    """Return the step that trains the part on `samples`."""
    config = task.config
    return TrainStep(
        model=_wrap(part.module, config, group),
        inputs=part.inputs,
        samples=samples,
        optimizer=optimizer,
        loss=Loss(
            smoothing=config.label_smoothing,
            class_weights=class_weights(
                samples, len(task.classes), config.class_weights, group.device
            ),
        ),
        group=group,
        seed=config.seed,
        precision=precision,
        accumulate=config.accumulate,
        mixing=_mixing(task, part.inputs, samples),
    )


def _mixing(
    task: TrainTask, inputs: PixelInputs | FeatureInputs, samples: Samples
) -> Mixing | None:
    """Return how training pictures are mixed, None if they are not."""
    augmentation = task.config.augmentation
    if not augmentation.mixes:
        return None
    assert isinstance(inputs, PixelInputs), "augmented features are not computed once"
    keys, side = inputs.keys[samples.rows], task.input_view.input_size
    return Mixing(augmentation=augmentation, keys=keys, seed=task.config.seed, side=side)


def _wrap(module: nn.Module, config: TrainConfig, group: Group) -> nn.Module:
    model = group.wrap(module)
    if config.compile:
        require_compiler(group.device)
        model.compile()
    return model
