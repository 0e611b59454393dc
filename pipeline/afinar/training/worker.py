"""The training job: what every worker does, in plain Python; Ray Train wraps it in `afinar.execution`."""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afinar.config.base import as_dict
from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.models.networks.network import Network, build_network
from afinar.models.networks.precision import use_bfloat16
from afinar.models.networks.stages import freeze, parameter_groups, set_training
from afinar.models.networks.weights import find_weights, load_weights
from afinar.storage.open import open_store
from afinar.training.checkpoint import Checkpoints
from afinar.training.distributed import Group
from afinar.training.inputs import FeatureInputs, Inputs, PixelInputs
from afinar.training.loading import ShardWindows, readers
from afinar.training.metrics import fit_temperature, score
from afinar.training.optim import Optimizer
from afinar.training.publish import Answers, TrainOutcome, read_outcome, write_outcome
from afinar.training.sample_log import SampleLog
from afinar.training.sampler import steps_per_epoch
from afinar.training.steps import Loss, Samples, TrainStep, predict
from afinar.training.task import TrainTask, check_batch_split, labelled_samples
from afinar.training.tensorboard import put_event_file
from afinar.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train(task: TrainTask, group: Group) -> TrainOutcome:
    """Train, keep the best epoch by validation, evaluate it on test once, write weights and golden samples.

    Every worker of the group calls this; only rank 0 writes. A run that has a checkpoint goes on from it, with any
    number of workers.
    """
    finished = read_outcome(task)
    if finished is not None:
        return finished
    config = task.config
    torch.manual_seed(config.seed)
    torch.backends.cudnn.allow_tf32 = (
        False  # what is published in float32 has to be float32 on any machine
    )
    window = config.window_mb * 2**20
    dataset = open_dataset(config.dataset, version=task.dataset_version, cache_bytes=2 * window)
    samples = labelled_samples(dataset, task)
    check_batch_split(task, len(samples["train"]), group.size)
    network = _initial_network(task, group)
    freeze(network, config.trainable_stages)
    module, inputs = _inputs(task, network, dataset, samples, group)
    steps = config.epochs * steps_per_epoch(len(samples["train"]), config.batch_size)
    descent = Optimizer(
        module, parameter_groups(network, config.weight_decay, config.layer_decay), config, steps
    )
    store = open_store(config.models)
    stepper = TrainStep(
        model=_wrapped(module, config, group),
        inputs=inputs,
        samples=samples["train"],
        descent=descent,
        loss=Loss(
            smoothing=config.label_smoothing,
            class_weights=_class_weights(task, samples["train"], group),
        ),
        group=group,
        seed=config.seed,
        precision=torch.bfloat16
        if group.all(use_bfloat16(config.precision, group.device))
        else torch.float32,
        threads=readers(group.device.type, dataset.view.store == "jpeg"),
        checkpoint_steps=config.checkpoint_steps,
    )
    fit = Trainer(
        config=config,
        classes=task.classes,
        module=module,
        set_training=functools.partial(set_training, network),
        stepper=stepper,
        windows=ShardWindows.of(dataset, samples["train"].rows, window),
        validation=samples["validation"],
        checkpoints=Checkpoints(store, task.run, task.fingerprint),
        audit=SampleLog(config.audit, task.run, group),
        record=functools.partial(put_event_file, store, task.run),
    )
    if group.leads:
        store.put_if_absent(
            f"runs/{task.run}/config.json", json.dumps(as_dict(config), indent=1).encode()
        )
    cursor = fit.run()
    outcome = TrainOutcome(
        history=cursor.history,
        best=[{"epoch": one["epoch"], **one["weights"]} for one in cursor.best if one["weights"]],
        params_total=sum(parameter.numel() for parameter in network.parameters()),
        params_trainable=sum(one.numel() for one in network.parameters() if one.requires_grad),
    )
    module.load_state_dict(descent.result.state_dict())
    answers = _evaluate(task, module, stepper, samples, outcome)
    network.eval()
    if group.leads:
        write_outcome(task, network, dataset, samples["test"], answers, outcome)
    return outcome


def _initial_network(task: TrainTask, group: Group) -> Network:
    """Random weights by the seed, pretrained ones over them on rank 0, then the same on every worker."""
    network, whole = build_network(task.architecture)
    config = task.config
    source = find_weights("none" if config.regime == "scratch" else config.weights, config.backbone)
    if source is not None and group.leads:
        load_weights(source, whole, network.backbone)
        logger.info(f"weights: {source.description}")
    network.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    group.agree(network)
    return network


def _inputs(
    task: TrainTask, network: Network, dataset: Dataset, samples: dict[str, Samples], group: Group
) -> tuple[nn.Module, Inputs]:
    """What is trained and what it is fed: the network on pixels; or the classifier on features, which are computed
    once where the backbone is frozen and no picture looks different the next time."""
    config = task.config
    augment = config.augmentation
    pixels = PixelInputs(dataset, task.input_view, augment, config.seed, group.device)
    if config.regime != "frozen" or augment.any:
        return network, pixels
    rows = np.concatenate([one.rows for one in samples.values()])
    width = next(
        layer.in_features for layer in network.classifier.modules() if isinstance(layer, nn.Linear)
    )
    if 4 * width * len(rows) > config.window_mb * 2**20:
        logger.info(
            f"note: {len(rows)} x {width} features do not fit --window-mb {config.window_mb}: computed in every epoch"
        )
        return network, pixels
    return network.classifier, FeatureInputs(network, pixels, rows, group)


def _wrapped(module: nn.Module, config: TrainConfig, group: Group) -> nn.Module:
    model = group.wrap(module)
    if config.compile:
        model.compile()
    return model


def _class_weights(task: TrainTask, train: Samples, group: Group) -> Tensor | None:
    """Balanced: samples / (classes * samples of the class), so that every class weighs alike and the mean is 1."""
    if task.config.class_weights == "none":
        return None
    counts = np.bincount(train.targets, minlength=len(task.classes))
    weights = len(train) / (len(counts) * counts)
    return torch.from_numpy(weights.astype(np.float32)).to(group.device)


def _evaluate(
    task: TrainTask,
    module: nn.Module,
    stepper: TrainStep,
    samples: dict[str, Samples],
    outcome: TrainOutcome,
) -> Answers:
    """Fit the temperature on validation, then look at the test split, for the first and only time."""
    group, classes = stepper.group, task.classes

    def logits_of(split: Samples) -> tuple[Any, Tensor, Tensor]:
        mine, logits = predict(
            module, stepper.inputs, split.rows, len(classes), group, stepper.threads
        )
        return mine, logits, split.targets_on(logits.device, mine)

    _, logits, targets = logits_of(samples["validation"])
    outcome.temperature = fit_temperature(logits, targets, group)
    outcome.metrics["val"] = _scores(logits, targets, classes, outcome.temperature)
    mine, logits, targets = logits_of(samples["test"])
    outcome.metrics["test"] = _scores(logits, targets, classes, outcome.temperature)

    probabilities = (logits.double() / outcome.temperature).softmax(dim=1)
    everyone = torch.zeros(2, len(samples["test"]), dtype=torch.float64, device=group.device)
    everyone[:, torch.from_numpy(mine).to(group.device)] = torch.stack(
        [probabilities.argmax(dim=1).double(), probabilities.amax(dim=1)]
    )
    best, sure = group.sum(everyone)
    return Answers(best.long(), sure)


def _scores(
    logits: Tensor, targets: Tensor, classes: list[str], temperature: float
) -> dict[str, Any]:
    """The split's metrics, and what the temperature makes of those that depend on it."""
    calibrated = score(logits, targets, classes, temperature=temperature)
    return {
        **asdict(score(logits, targets, classes)),
        "calibrated": {"loss": calibrated.loss, "calibration_error": calibrated.calibration_error},
    }
