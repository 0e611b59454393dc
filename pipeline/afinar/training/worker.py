"""Training worker: the work of each process, in plain Python. execution/ runs it on Ray."""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from afinar.config.base import as_dict
from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.models.networks.heads import set_class_rows
from afinar.models.networks.network import Network
from afinar.models.networks.stages import freeze, parameter_groups, set_training
from afinar.storage.open import open_store
from afinar.training.batch_size import common_batch
from afinar.training.batches import BatchLoader, Samples
from afinar.training.checkpoint import Checkpoints, TrainState
from afinar.training.checkpoint_writer import CheckpointSchedule, CheckpointWriter
from afinar.training.distributed import Group
from afinar.training.evaluator import Evaluator, LocalLogits
from afinar.training.final_evaluation import compute_split_metrics, evaluate_test
from afinar.training.head_start import (
    FirstHead,
    HeadSolver,
    HeadStart,
    evaluate_head_of_model,
)
from afinar.training.hooks import NO_HOOKS, TrainHooks
from afinar.training.hyperparameters import format_settings, resolved_values, used_options
from afinar.training.loading import ShardWindows, num_loader_threads
from afinar.training.metrics import fit_temperature
from afinar.training.optim import Optimizer
from afinar.training.preparation import (
    TrainedPart,
    common_precision,
    head_solver,
    initial_network,
    train_step,
    trained_part,
)
from afinar.training.publish import (
    TrainResult,
    TrialResult,
    read_result,
    read_trial,
    write_result,
    write_trial,
)
from afinar.training.sample_log import SampleLog
from afinar.training.sampler import epoch_order, steps_per_epoch, window_balance
from afinar.training.task import (
    LabelledSamples,
    TrainTask,
    config_name,
    labelled_samples,
    resolve_task,
)
from afinar.training.tensorboard import put_event_file
from afinar.training.time_limit import TimeLimit
from afinar.training.trainer import Trainer

logger = logging.getLogger(__name__)

_MIN_BALANCE: Final = 0.8  # of the classes in a window
_LARGE_BATCH: Final = 256
_MANY_EPOCHS: Final = 60
_FEW_STEPS: Final = 10


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
    is_cut: bool
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
    evaluation = evaluate_test(
        training.task,
        training.module,
        training.evaluator,
        training.samples.test,
        training.validation,
        training.temperature,
    )
    training.dataset.wait_verified()
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
    config = task.config
    torch.manual_seed(config.seed)
    # Published float32 weights must give the same logits on any machine.
    torch.backends.cudnn.allow_tf32 = False

    window_bytes = config.window_mb * 2**20
    dataset = open_dataset(
        config.dataset,
        version=task.dataset_version,
        cache_bytes=2 * window_bytes,
        verify_later=True,
    )
    samples = labelled_samples(dataset, config, task.classes)

    network, kept = initial_network(task, group)
    freeze(network, config.trainable_stages)
    precision = common_precision(config, group)
    threads = num_loader_threads(group.device.type, dataset.view.store == "jpeg")
    part = trained_part(task, network, dataset, samples, group, precision, threads)
    dataset.wait_verified()
    evaluator = Evaluator(part.inputs, task.classes, group, threads, precision)
    task = resolve_task(
        task,
        group.size,
        on_gpu=group.device.type == "cuda",
        measure_batch=functools.partial(common_batch, task, part, group, precision),
    )
    config = task.config

    store = open_store(config.models)
    checkpoints = Checkpoints(store, task.run, task.fingerprint)
    epochs = config.epochs
    assert epochs != "auto", "the task is resolved"
    # A run that has made steps has its head in its checkpoint. One that has not begins anew: the
    # checkpoint of epoch 0 has not the head that the steps begin with.
    is_new = group.all_true(not checkpoints.have_steps())
    solver = None
    if config.solves_head and (is_new or config.refit):
        solver = head_solver(task, network, part, samples, evaluator, group, kept)
    start = _head_start(solver, part, samples, evaluator, kept) if is_new else None
    if config.solves_head and part.is_solved_at_once:
        epochs = 0
    first_head = _first_head(solver, start, config, group) if epochs else None

    per_epoch = steps_per_epoch(task.epoch_samples, config.samples_per_step)
    time_limit = TimeLimit(
        task.deadline_s,
        epochs * per_epoch,
        steps_per_epoch=per_epoch,
        batch_size=config.samples_per_step,
        validation=len(samples.validation),
        test=len(samples.test),
    )
    # Frozen layers stay in evaluation mode: the optimizer must know what changes.
    set_training(network)
    optimizer = Optimizer(
        part.module,
        parameter_groups(network, config.weight_decay, config.layer_decay, config.head_rate),
        config,
        steps=time_limit.planned,
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
        train_step=train_step(task, part, samples.train, optimizer, group, precision),
        optimizer=optimizer,
        evaluator=evaluator,
        validation=samples.validation,
        checkpoints=checkpoints,
        writer=CheckpointWriter(checkpoints),
        schedule=CheckpointSchedule(config.checkpoint_minutes),
        hooks=hooks,
        sample_log=SampleLog(config.audit, task.run, group),
        on_epoch_end=functools.partial(put_event_file, store, task.run),
        epochs=epochs if task.last_epoch is None else min(epochs, task.last_epoch),
        time_limit=time_limit,
        start=None if start is None else start.row,
        before_steps=functools.partial(_set_head, network, first_head, group),
    )
    if group.is_rank_zero:
        _record_start(task, trainer, samples, epochs, precision)
    state = trainer.run()

    part.module.load_state_dict(optimizer.eval_model.state_dict())
    freeze(network, 0 if _final_regime(config, state) == "frozen" else config.trainable_stages)
    module = part.module
    if precision != torch.float32:
        # Features of reduced precision do not give the logits of the published network.
        evaluator, module = replace(evaluator, inputs=part.pixels), network
    validation = evaluator.compute_logits(module, samples.validation)
    temperature = 1.0
    if not _is_calibrated(state, len(samples.validation)):
        temperature = fit_temperature(validation.logits, validation.targets, group)
    validation_metrics = compute_split_metrics(validation, task.classes, group, temperature)
    if config.refit and solver is not None:
        solver.refit(state.history[0])
    dataset.wait_verified()
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
        is_cut=bool(state.history[-1].get("cut")),
        validation_metrics=validation_metrics,
    )


def _result(training: _Training) -> TrialResult:
    config, state = training.task.config, training.state
    parameters = list(training.network.parameters())
    settings = _settings(config, training.precision, training.group)
    settings |= {"is_cut": True} if training.is_cut else {}
    settings |= {"refit": True} if config.refit else {}
    return TrialResult(
        history=state.history,
        best=[
            {"epoch": epoch.epoch, **epoch.weights.as_dict()}
            for epoch in state.best
            if epoch.weights
        ],
        settings=used_options(settings, state.history[-1]["epoch"]),
        regime=_final_regime(config, state),
        metrics={"val": training.validation_metrics},
        temperature=training.temperature,
        params_total=sum(parameter.numel() for parameter in parameters),
        params_trainable=sum(
            parameter.numel() for parameter in parameters if parameter.requires_grad
        ),
    )


def _head_start(
    solver: HeadSolver | None,
    part: TrainedPart,
    samples: LabelledSamples,
    evaluator: Evaluator,
    kept: NDArray[np.bool_],
) -> HeadStart | None:
    """Return epoch 0: that of a solved head, or of the head of a model; else None."""
    if solver is not None:
        return solver.solve()
    if not kept.any():
        return None
    return HeadStart(evaluate_head_of_model(part.module, samples, evaluator))


def _first_head(
    solver: HeadSolver | None, start: HeadStart | None, config: TrainConfig, group: Group
) -> FirstHead | None:
    """Return, on rank 0, the head that training begins with, if it is not that of epoch 0."""
    if solver is None or start is None or start.row["head"] != "solved":
        return None
    return solver.first_head(start.smooth, _norm_batch(config, group))


def _norm_batch(config: TrainConfig, group: Group) -> int:
    """Return how many samples BatchNorm normalises together in training, or 256 if that is less.

    Larger batches have nearly the same statistics. It sees those of all workers on GPUs, and those
    of one worker on CPUs.
    """
    parts = config.accumulate * (1 if group.device.type == "cuda" else group.size)
    return max(2, min(_LARGE_BATCH, config.samples_per_step // parts))


def _set_head(network: Network, first: FirstHead | None, group: Group) -> None:
    """Set the head's weights on all workers to those that rank 0 has."""
    if first is not None:
        set_class_rows(network.classifier, first.head.weight, first.head.bias)
        if first.losses is not None:
            before, loss = first.losses
            logger.info(
                "head solved again for BatchNorm in training: val loss there "
                f"{loss:.3f} instead of {before:.3f}"
            )
    group.broadcast_parameters(network.classifier)


def _record_start(
    task: TrainTask, trainer: Trainer, samples: LabelledSamples, epochs: int, precision: torch.dtype
) -> None:
    """Write the resolved configuration of a run, and log what the training is."""
    config, group = task.config, trainer.group
    options = json.dumps(as_dict(config) | _settings(config, precision, group), indent=1)
    store = open_store(config.models)
    store.put_if_absent(config_name(task.run), options.encode())
    _log_start(config, epochs, samples, task.classes, precision, group)
    _log_many_epochs(epochs, steps_per_epoch(task.epoch_samples, config.samples_per_step))
    _log_unbalanced_windows(trainer.windows, samples.train, config)


def _settings(config: TrainConfig, precision: torch.dtype, group: Group) -> dict[str, Any]:
    """Return the values that flags with a default of `auto` or 0 have in this run."""
    is_cpu = group.device.type == "cpu"
    return resolved_values(config) | {
        "augment": config.augmentation.describe(),
        "workers": group.size,
        "device": "CPU" if is_cpu else torch.cuda.get_device_name(group.device),
        "precision": str(precision).removeprefix("torch."),
    }


def _log_start(
    config: TrainConfig,
    epochs: int,
    samples: LabelledSamples,
    classes: list[str],
    precision: torch.dtype,
    group: Group,
) -> None:
    """Log what the training is, and the accuracy that it must exceed."""
    counts = np.bincount(samples.validation.targets, minlength=len(classes))
    is_cpu = group.device.type == "cpu"
    device = "CPU, no GPU found" if is_cpu else torch.cuda.get_device_name(group.device)
    workers = f"{group.size} workers" if group.size > 1 else "1 worker"
    logger.info(
        f"{len(samples.train):,} training, {len(samples.validation):,} validation and "
        f"{len(samples.test):,} test pictures of {len(classes):,} classes"
    )
    logger.info(
        f"{workers} on {device}, {str(precision).removeprefix('torch.')}; {config.regime}: "
        f"{format_settings(resolved_values(config), epochs)}"
    )
    logger.info(
        f"always answering “{classes[counts.argmax()]}” is right for "
        f"{counts.max() / counts.sum():.1%} of the validation pictures"
    )


def _log_many_epochs(epochs: int, steps: int) -> None:
    """Log a note if an epoch has few steps, so that each step costs a validation or nearly so."""
    if epochs >= _MANY_EPOCHS and steps < _FEW_STEPS:
        each = "1 step" if steps == 1 else f"{steps} steps"
        logger.info(
            f"note: few pictures: an epoch has {each}, so {epochs} epochs are planned; "
            "--regime frozen needs none, and --patience 30 stops when nothing gets better"
        )


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


def _is_calibrated(state: TrainState, validation: int) -> bool:
    """Return True if the best epoch is a head that was calibrated on more than validation."""
    start = state.history[0]
    is_solved = state.best[0].epoch == 0 and start.get("head") == "solved"
    return is_solved and int(start.get("held_out", 0)) > validation


def _final_regime(config: TrainConfig, state: TrainState) -> str:
    """Return the regime that made the published weights: `auto` is frozen or full."""
    if config.regime != "auto":
        return config.regime
    return "frozen" if state.best[0].epoch == 0 else "full"
