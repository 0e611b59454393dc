"""Training worker: the work of each process, in plain Python. execution/ runs it on Ray."""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from afinar.config.base import as_dict
from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.models.networks.compiler import require_compiler
from afinar.models.networks.network import Network, build_network
from afinar.models.networks.precision import use_bfloat16
from afinar.models.networks.stages import freeze, parameter_groups, set_training
from afinar.models.networks.weights import find_weights, load_weights
from afinar.storage.open import open_store
from afinar.training.batches import BatchLoader, Samples
from afinar.training.checkpoint import Checkpoints
from afinar.training.distributed import Group
from afinar.training.evaluator import Evaluator, LocalLogits
from afinar.training.inputs import FeatureInputs, Inputs, PixelInputs, compute_features
from afinar.training.loading import ShardWindows, num_loader_threads
from afinar.training.metrics import compute_metrics, fit_temperature
from afinar.training.optim import Optimizer
from afinar.training.publish import TestPredictions, TrainResult, read_result, write_result
from afinar.training.sample_log import SampleLog
from afinar.training.sampler import steps_per_epoch
from afinar.training.steps import Loss, TrainStep
from afinar.training.task import LabelledSamples, TrainTask, check_batch_split, labelled_samples
from afinar.training.tensorboard import put_event_file
from afinar.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train(task: TrainTask, group: Group) -> TrainResult:
    """Train, evaluate the best epoch on the test split once, and write the result.

    Every worker of the group calls this; only rank 0 writes, and only its return value names the
    written objects. A run that has a checkpoint resumes from it, with any number of workers. A run
    that has a result returns it.
    """
    finished = read_result(task)
    if finished is not None:
        return finished

    config = task.config
    torch.manual_seed(config.seed)
    # Published float32 weights must give the same logits on any machine.
    torch.backends.cudnn.allow_tf32 = False

    window_bytes = config.window_mb * 2**20
    dataset = open_dataset(
        config.dataset, version=task.dataset_version, cache_bytes=2 * window_bytes
    )
    samples = labelled_samples(dataset, task)
    check_batch_split(task, len(samples.train), group.size)

    network = _initial_network(task, group)
    freeze(network, config.trainable_stages)
    module, inputs = _trained_part(task, network, dataset, samples, group)
    threads = num_loader_threads(group.device.type, dataset.view.store == "jpeg")
    evaluator = Evaluator(inputs, task.classes, group, threads)
    optimizer = Optimizer(
        module,
        parameter_groups(network, config.weight_decay, config.layer_decay),
        config,
        steps=config.epochs * steps_per_epoch(len(samples.train), config.batch_size),
    )

    store = open_store(config.models)
    trainer = Trainer(
        config=config,
        group=group,
        module=module,
        set_training=functools.partial(set_training, network),
        loader=BatchLoader(inputs, samples.train, group, threads),
        windows=ShardWindows.of(dataset, samples.train.rows, window_bytes),
        train_step=_train_step(task, module, inputs, samples.train, optimizer, group),
        optimizer=optimizer,
        evaluator=evaluator,
        validation=samples.validation,
        checkpoints=Checkpoints(store, task.run, task.fingerprint),
        sample_log=SampleLog(config.audit, task.run, group),
        on_epoch_end=functools.partial(put_event_file, store, task.run),
    )
    if group.is_rank_zero:
        options = json.dumps(as_dict(config), indent=1)
        store.put_if_absent(f"runs/{task.run}/config.json", options.encode())
    state = trainer.run()

    module.load_state_dict(optimizer.eval_model.state_dict())
    evaluation = _evaluate(evaluator, module, samples, task.classes, group)
    parameters = list(network.parameters())
    result = TrainResult(
        history=state.history,
        best=[
            {"epoch": epoch.epoch, **epoch.weights.as_dict()}
            for epoch in state.best
            if epoch.weights
        ],
        metrics=evaluation.metrics,
        temperature=evaluation.temperature,
        params_total=sum(parameter.numel() for parameter in parameters),
        params_trainable=sum(
            parameter.numel() for parameter in parameters if parameter.requires_grad
        ),
    )
    if not group.is_rank_zero:
        return result
    network.eval()
    return write_result(task, network, dataset, samples.test, evaluation.test, result)


def _initial_network(task: TrainTask, group: Group) -> Network:
    """Return the network with the same initial weights on every worker.

    Rank 0 loads pretrained weights over the random ones of the seed, then all workers copy its.
    """
    network, whole = build_network(task.architecture)
    config = task.config
    source = find_weights("none" if config.regime == "scratch" else config.weights, config.backbone)
    if source is not None and group.is_rank_zero:
        load_weights(source, whole, network.backbone)
        logger.info(f"weights: {source.description}")

    network.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    group.broadcast_parameters(network)
    return network


class _TrainedPart(NamedTuple):
    """The trained module and its inputs."""

    module: nn.Module
    inputs: Inputs


def _trained_part(
    task: TrainTask, network: Network, dataset: Dataset, samples: LabelledSamples, group: Group
) -> _TrainedPart:
    """Return the network with pixels as inputs, or its classifier with features as inputs.

    Features are computed once if the backbone is frozen and there is no augmentation, so that every
    epoch would compute the same ones, and if they fit `--window-mb`.
    """
    config = task.config
    pixels = PixelInputs(dataset, task.input_view, config.augmentation, config.seed, group.device)
    if config.regime != "frozen" or config.augmentation.any:
        return _TrainedPart(network, pixels)

    splits = (samples.train, samples.validation, samples.test)
    rows = np.concatenate([split.rows for split in splits])
    linear = (layer for layer in network.classifier.modules() if isinstance(layer, nn.Linear))
    width = next(linear).in_features
    if 4 * width * len(rows) > config.window_mb * 2**20:
        logger.info(
            f"note: {len(rows)} x {width} features do not fit --window-mb {config.window_mb}: "
            "computed in every epoch"
        )
        return _TrainedPart(network, pixels)
    features = compute_features(network, pixels, rows, group)
    return _TrainedPart(network.classifier, FeatureInputs(features, rows))


def _train_step(
    task: TrainTask,
    module: nn.Module,
    inputs: Inputs,
    samples: Samples,
    optimizer: Optimizer,
    group: Group,
) -> TrainStep:
    config = task.config
    # bfloat16 only if every worker's hardware multiplies it: all must compute alike.
    half = group.all_true(use_bfloat16(config.precision, group.device))
    return TrainStep(
        model=_wrap(module, config, group),
        inputs=inputs,
        samples=samples,
        optimizer=optimizer,
        loss=Loss(
            smoothing=config.label_smoothing,
            class_weights=_class_weights(task, samples, group),
        ),
        group=group,
        seed=config.seed,
        precision=torch.bfloat16 if half else torch.float32,
    )


def _wrap(module: nn.Module, config: TrainConfig, group: Group) -> nn.Module:
    model = group.wrap(module)
    if config.compile:
        require_compiler(group.device)
        model.compile()
    return model


def _class_weights(task: TrainTask, samples: Samples, group: Group) -> Tensor | None:
    """Return samples / (classes * samples of the class), or None for `--class-weights none`.

    The sum over a class is then the same for all classes, and the mean over samples is 1. Example:
    30 and 10 samples of two classes give the weights 0.67 and 2.
    """
    if task.config.class_weights == "none":
        return None
    counts = np.bincount(samples.targets, minlength=len(task.classes))
    weights = len(samples) / (len(counts) * counts)
    return torch.from_numpy(weights.astype(np.float32)).to(group.device)


@dataclass(frozen=True)
class _Evaluation:
    """Final evaluation: `metrics` by split (`val`, `test`), and predictions for the test split."""

    temperature: float
    metrics: dict[str, Any]
    test: TestPredictions


def _evaluate(
    evaluator: Evaluator,
    module: nn.Module,
    samples: LabelledSamples,
    classes: list[str],
    group: Group,
) -> _Evaluation:
    """Fit the temperature on validation, then evaluate validation and test."""
    validation = evaluator.compute_logits(module, samples.validation)
    temperature = fit_temperature(validation.logits, validation.targets, group)
    val_metrics = _metrics(validation, classes, group, temperature)

    # The only use of the test split: nothing is chosen by it.
    test = evaluator.compute_logits(module, samples.test)
    test_metrics = _metrics(test, classes, group, temperature)

    # Each worker fills in its own positions; the sum with the zeros of the others is exact.
    probabilities = (test.logits.double() / temperature).softmax(dim=1)
    local = torch.stack([probabilities.argmax(dim=1).double(), probabilities.amax(dim=1)])
    gathered = torch.zeros(2, len(samples.test), dtype=torch.float64, device=group.device)
    gathered[:, torch.from_numpy(test.positions).to(group.device)] = local
    predicted, scores = group.all_reduce_sum(gathered)
    return _Evaluation(
        temperature=temperature,
        metrics={"val": val_metrics, "test": test_metrics},
        test=TestPredictions(predicted.long(), scores),
    )


def _metrics(
    local: LocalLogits, classes: list[str], group: Group, temperature: float
) -> dict[str, Any]:
    """Return the metrics of a split; `calibrated` holds those that the temperature changes."""
    plain = compute_metrics(local.logits, local.targets, classes, group)
    calibrated = compute_metrics(
        local.logits, local.targets, classes, group, temperature=temperature
    )

    return {
        **asdict(plain),
        "calibrated": {"loss": calibrated.loss, "calibration_error": calibrated.calibration_error},
    }
