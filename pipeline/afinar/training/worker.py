"""Training worker: the work of each process, in plain Python. execution/ runs it on Ray."""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import asdict, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from afinar.config.base import as_dict
from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.models.networks.compiler import require_compiler
from afinar.models.networks.network import Network, build_network
from afinar.models.networks.precision import use_bfloat16, use_float16
from afinar.models.networks.stages import freeze, parameter_groups, set_training
from afinar.models.networks.weights import find_weights, load_weights
from afinar.storage.open import open_store
from afinar.training.batches import BatchLoader, Samples
from afinar.training.checkpoint import Checkpoints, TrainState
from afinar.training.checkpoint_writer import CheckpointSchedule, CheckpointWriter
from afinar.training.distributed import Group
from afinar.training.evaluator import Evaluator, LocalLogits
from afinar.training.head_start import HeadSolver, evaluate_head_of_model, solver_samples
from afinar.training.hooks import NO_HOOKS, TrainHooks
from afinar.training.hyperparameters import format_settings, resolved_values
from afinar.training.inputs import FeatureInputs, PixelInputs, compute_features
from afinar.training.linear_probe import Objective
from afinar.training.loading import ShardWindows, num_loader_threads
from afinar.training.metrics import compute_metrics, fit_temperature
from afinar.training.mixing import Mixing
from afinar.training.operating_points import BinaryScores, operating_points
from afinar.training.optim import Optimizer
from afinar.training.parent import find_parent, load_parent, rows_of_parent
from afinar.training.publish import (
    TestPredictions,
    TrainResult,
    TrialResult,
    read_result,
    read_trial,
    write_result,
    write_trial,
)
from afinar.training.sample_log import SampleLog
from afinar.training.sampler import epoch_order, steps_per_epoch, window_balance
from afinar.training.steps import Loss, TrainStep, class_weights
from afinar.training.task import (
    LabelledSamples,
    TrainTask,
    config_name,
    labelled_samples,
    resolve_task,
)
from afinar.training.tensorboard import put_event_file
from afinar.training.trainer import Trainer

logger = logging.getLogger(__name__)

_MIN_BALANCE: Final = 0.8  # of the classes in a window


class _Training(NamedTuple):
    """A training that has ended, with the weights of its best epoch in `network`.

    `validation` and what follows are its final evaluation, `module` is the trained part.
    """

    task: TrainTask
    network: Network
    module: nn.Module
    precision: torch.dtype
    dataset: Dataset
    samples: LabelledSamples
    evaluator: Evaluator
    group: Group
    state: TrainState
    validation: LocalLogits
    temperature: float
    validation_metrics: dict[str, Any]


def train(task: TrainTask, group: Group, hooks: TrainHooks = NO_HOOKS) -> TrainResult:
    """Train, evaluate the best epoch on the test split once, and write the result.

    Every worker of the group calls this; only rank 0 writes, and only its return value names the
    written objects. A run that has a checkpoint resumes from it, with any number of workers. A run
    that has a result returns it.
    """
    finished = read_result(task)
    if finished is not None:
        return finished

    training = _train(task, group, hooks)
    # The only use of the test split: nothing is chosen by it.
    evaluation = _evaluate_test(training)
    values = vars(_result(training)) | {
        "metrics": {"val": training.validation_metrics, "test": evaluation.metrics}
    }
    result = TrainResult(**values)
    if not group.is_rank_zero:
        return result
    network = training.network.eval()
    return write_result(
        training.task,
        network,
        training.dataset,
        training.samples.test,
        evaluation.predictions,
        result,
    )


def train_trial(task: TrainTask, group: Group, hooks: TrainHooks = NO_HOOKS) -> TrialResult:
    """Train and write the result on validation; the test split is not read.

    Otherwise like `train`, which later continues from the trial's last checkpoint.
    """
    finished = read_trial(task)
    if finished is not None:
        return finished

    result = _result(_train(task, group, hooks))
    if group.is_rank_zero:
        write_trial(task, result)
    return result


def run_worker(task: TrainTask, group: Group, hooks: TrainHooks = NO_HOOKS) -> None:
    """Do the work of one worker of a task."""
    if task.is_trial:
        train_trial(task, group, hooks)
    else:
        train(task, group, hooks)


def _train(task: TrainTask, group: Group, hooks: TrainHooks) -> _Training:
    """Train from the newest checkpoint to the last epoch, and evaluate the best on validation."""
    task = resolve_task(task, group.size, on_gpu=group.device.type == "cuda")
    config = task.config
    torch.manual_seed(config.seed)
    # Published float32 weights must give the same logits on any machine.
    torch.backends.cudnn.allow_tf32 = False

    window_bytes = config.window_mb * 2**20
    dataset = open_dataset(
        config.dataset, version=task.dataset_version, cache_bytes=2 * window_bytes
    )
    samples = labelled_samples(dataset, config, task.classes)

    network, kept = _initial_network(task, group)
    freeze(network, config.trainable_stages)
    precision = _common_precision(config, group)
    threads = num_loader_threads(group.device.type, dataset.view.store == "jpeg")
    part = _trained_part(task, network, dataset, samples, group, precision, threads)
    evaluator = Evaluator(part.inputs, task.classes, group, threads, precision)

    store = open_store(config.models)
    checkpoints = Checkpoints(store, task.run, task.fingerprint)
    start, epochs = None, config.epochs
    assert epochs != "auto", "the task is resolved"
    # A run that has begun has its head in its checkpoint.
    is_new = group.all_true(not checkpoints.exist())
    if is_new and config.solves_head:
        solver = _head_solver(task, network, part, samples, evaluator, group, kept)
        start = solver.solve()
    elif is_new and kept.any():
        start = evaluate_head_of_model(part.module, samples, evaluator)
    if config.solves_head and part.is_solved_at_once:
        epochs = 0

    # Frozen layers stay in evaluation mode: the optimizer must know what changes.
    set_training(network)
    optimizer = Optimizer(
        part.module,
        parameter_groups(network, config.weight_decay, config.layer_decay, config.head_rate),
        config,
        steps=epochs * steps_per_epoch(task.epoch_samples, config.batch_size),
        precision=precision,
    )
    trainer = Trainer(
        config=config,
        group=group,
        module=part.module,
        set_training=functools.partial(set_training, network),
        loader=BatchLoader(
            part.inputs, samples.train, group, threads, partners=config.augmentation.mixes
        ),
        windows=ShardWindows.of(dataset, samples.train.rows, window_bytes),
        train_step=_train_step(task, part, samples.train, optimizer, group, precision),
        optimizer=optimizer,
        evaluator=evaluator,
        validation=samples.validation,
        checkpoints=checkpoints,
        writer=CheckpointWriter(checkpoints),
        schedule=CheckpointSchedule(config.checkpoint_minutes),
        hooks=hooks,
        sample_log=SampleLog(config.audit, task.run, group),
        on_epoch_end=functools.partial(put_event_file, store, task.run),
        epochs=epochs if task.last_epoch is None else task.last_epoch,
        start=start,
    )
    if group.is_rank_zero:
        options = json.dumps(as_dict(config), indent=1)
        store.put_if_absent(config_name(task.run), options.encode())
        _log_start(config, epochs, samples.validation, task.classes, precision, group)
        _log_unbalanced_windows(trainer.windows, samples.train, config)
    state = trainer.run()

    part.module.load_state_dict(optimizer.eval_model.state_dict())
    freeze(network, 0 if _final_regime(config, state) == "frozen" else config.trainable_stages)
    module = part.module
    if precision != torch.float32:
        # Features of reduced precision do not give the logits of the published network.
        evaluator, module = replace(evaluator, inputs=part.pixels), network
    validation = evaluator.compute_logits(module, samples.validation)
    temperature = fit_temperature(validation.logits, validation.targets, group)
    return _Training(
        task=task,
        network=network,
        module=module,
        precision=precision,
        dataset=dataset,
        samples=samples,
        evaluator=evaluator,
        group=group,
        state=state,
        validation=validation,
        temperature=temperature,
        validation_metrics=_metrics(validation, task.classes, group, temperature),
    )


def _result(training: _Training) -> TrialResult:
    config, state = training.task.config, training.state
    parameters = list(training.network.parameters())
    return TrialResult(
        history=state.history,
        best=[
            {"epoch": epoch.epoch, **epoch.weights.as_dict()}
            for epoch in state.best
            if epoch.weights
        ],
        settings=resolved_values(config)
        | {"precision": str(training.precision).removeprefix("torch.")},
        regime=_final_regime(config, state),
        metrics={"val": training.validation_metrics},
        temperature=training.temperature,
        params_total=sum(parameter.numel() for parameter in parameters),
        params_trainable=sum(
            parameter.numel() for parameter in parameters if parameter.requires_grad
        ),
    )


def _log_start(
    config: TrainConfig,
    epochs: int,
    validation: Samples,
    classes: list[str],
    precision: torch.dtype,
    group: Group,
) -> None:
    """Log what the training is, and the accuracy that it must exceed."""
    counts = np.bincount(validation.targets, minlength=len(classes))
    device = "CPU" if group.device.type == "cpu" else torch.cuda.get_device_name(group.device)
    workers = f"{group.size} workers" if group.size > 1 else "1 worker"
    logger.info(
        f"{config.regime}: {format_settings(resolved_values(config), epochs)}; {workers} on "
        f"{device} in {str(precision).removeprefix('torch.')}; always answering "
        f"“{classes[counts.argmax()]}” is right for {counts.max() / len(validation):.1%} of "
        "validation"
    )


def _common_precision(config: TrainConfig, group: Group) -> torch.dtype:
    """Return the precision that the hardware of every worker is fast at: all must compute alike."""
    if group.all_true(use_bfloat16(config.precision, group.device)):
        return torch.bfloat16
    if not group.all_true(use_float16(config.precision, group.device)):
        return torch.float32
    if group.device.type == "cpu" and group.is_rank_zero:
        logger.info("note: CPUs emulate float16, which is slower than float32")
    return torch.float16


def _log_unbalanced_windows(windows: ShardWindows, samples: Samples, config: TrainConfig) -> None:
    """Log a note if the windows of the shuffle hold few of the classes."""
    epoch = epoch_order(windows.shards, config.seed, 0, windows.size)
    balance = window_balance(epoch, samples.targets)
    if balance < _MIN_BALANCE:
        logger.info(
            f"note: a window of {windows.size} shards holds {balance:.0%} of the classes that a "
            "full shuffle would give, because its shards hold few classes each: give a larger "
            "--window-mb, or ingest into a new dataset, which mixes the classes in its shards"
        )


def _final_regime(config: TrainConfig, state: TrainState) -> str:
    """Return the regime that made the published weights: `auto` is frozen or full."""
    if config.regime != "auto":
        return config.regime
    return "frozen" if state.best[0].epoch == 0 else "full"


class _InitialNetwork(NamedTuple):
    """A network, and which classes have rows of the head of a published model, bool [classes]."""

    network: Network
    kept: NDArray[np.bool_]


def _initial_network(task: TrainTask, group: Group) -> _InitialNetwork:
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
    return _InitialNetwork(network, kept)


class _TrainedPart(NamedTuple):
    """The trained module and its inputs, and `pixels`, the inputs of the whole network.

    `solver_samples` is the number of training samples that its head can be solved on.
    `is_solved_at_once` is true if no epoch can improve that solution.
    """

    module: nn.Module
    inputs: PixelInputs | FeatureInputs
    pixels: PixelInputs
    solver_samples: int
    is_solved_at_once: bool = False


def _trained_part(
    task: TrainTask,
    network: Network,
    dataset: Dataset,
    samples: LabelledSamples,
    group: Group,
    precision: torch.dtype,
    threads: int,
) -> _TrainedPart:
    """Return the network with pixels as inputs, or its classifier with features as inputs.

    Features are computed once if the backbone is frozen and there is no augmentation, so that every
    epoch would compute the same ones, and if they fit `--window-mb`.
    """
    config = task.config
    pixels = PixelInputs(dataset, task.input_view, config.augmentation, config.seed, group.device)
    linear = (layer for layer in network.classifier.modules() if isinstance(layer, nn.Linear))
    width, classes = next(linear).in_features, len(task.classes)
    feature_bytes = config.window_mb * 2**20
    count = solver_samples(len(samples.train), width, classes, feature_bytes, group.device.type)
    if config.regime != "frozen" or config.augmentation.any:
        return _TrainedPart(network, pixels, pixels, count)

    splits = [samples.train, samples.validation]
    if precision == torch.float32:
        splits.append(samples.test)
    rows = np.concatenate([split.rows for split in splits])
    if 4 * width * len(rows) > feature_bytes:
        logger.info(
            f"note: {len(rows)} x {width} features do not fit --window-mb {config.window_mb}: "
            "computed in every epoch"
        )
        return _TrainedPart(network, pixels, pixels, count)
    features = compute_features(network, pixels, rows, group, precision, threads)
    return _TrainedPart(
        network.classifier,
        FeatureInputs(features, rows),
        pixels,
        count,
        count == len(samples.train),
    )


def _head_solver(
    task: TrainTask,
    network: Network,
    part: _TrainedPart,
    samples: LabelledSamples,
    evaluator: Evaluator,
    group: Group,
    kept: NDArray[np.bool_],
) -> HeadSolver:
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
        select_by=config.select_by,
    )


def _train_step(
    task: TrainTask,
    part: _TrainedPart,
    samples: Samples,
    optimizer: Optimizer,
    group: Group,
    precision: torch.dtype,
) -> TrainStep:
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


class _TestEvaluation(NamedTuple):
    """Metrics of the test split, and predictions for it."""

    metrics: dict[str, Any]
    predictions: TestPredictions


def _evaluate_test(training: _Training) -> _TestEvaluation:
    group, samples, task = training.group, training.samples.test, training.task
    temperature = training.temperature
    test = training.evaluator.compute_logits(training.module, samples)
    metrics = _metrics(test, task.classes, group, temperature)
    if len(task.classes) == 2:
        splits = [
            _binary_scores(split, temperature, group) for split in (training.validation, test)
        ]
        if all(split.has_both_classes for split in splits):
            metrics["binary"] = {
                "positive": task.classes[1],
                **operating_points(task.config.operating_targets, *splits),
            }

    # Each worker fills in its own positions; the sum with the zeros of the others is exact.
    probabilities = (test.logits.double() / temperature).softmax(dim=1)
    local = torch.stack([probabilities.argmax(dim=1).double(), probabilities.amax(dim=1)])
    gathered = torch.zeros(2, len(samples), dtype=torch.float64, device=group.device)
    gathered[:, torch.from_numpy(test.positions).to(group.device)] = local
    predicted, scores = group.all_reduce_sum(gathered)
    return _TestEvaluation(metrics, TestPredictions(predicted.long(), scores))


def _binary_scores(local: LocalLogits, temperature: float, group: Group) -> BinaryScores:
    """Return the probabilities of the second of two classes, from all workers."""
    probabilities = (local.logits.double() / temperature).softmax(dim=1)[:, 1]
    scores, targets = group.all_gather(torch.stack([probabilities, local.targets.double()])).cpu()
    return BinaryScores(scores.numpy(), targets.numpy() == 1)


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
