"""Publish a row of a comparison as the next version of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from afinar.comparison.cells import CellResult, read_head
from afinar.comparison.grid import train_config
from afinar.config.compare import CompareConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import NotFoundError, RequestError
from afinar.features.reader import open_key
from afinar.models.registry.versions import ModelVersion
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.driver import (
    EvaluatedRun,
    Launcher,
    TrainOutcome,
    publish_run,
    run_unpublished,
)
from afinar.training.evaluator import Evaluator
from afinar.training.final_evaluation import compute_split_metrics, evaluate_test
from afinar.training.inputs import FeatureInputs
from afinar.training.preparation import initial_network
from afinar.training.publish import TrainResult, find_published, write_result
from afinar.training.task import labelled_samples, plan_training, resolve_task
from afinar.training.unfinished import has_marker


def publish_cell(
    config: CompareConfig,
    result: CellResult,
    launch: Launcher,
    on_published: Callable[[TrainOutcome], None],
) -> ModelVersion:
    """Publish a finished cell: a training as it is, or a head on its backbone.

    Returns the version that has it already, if there is one; a publication that was interrupted
    before its report was written is completed. Raises RequestError for neighbours, which are no
    network.
    """
    if result.cell.head == "knn":
        raise RequestError("--publish: nearest neighbours are no network; choose another row")
    store, name = open_store(config.runs), result.run or _run_of(result)
    published = find_published(store, name)
    if published is not None and not has_marker(store, name):
        return published
    if result.run:
        run = run_unpublished(train_config(config, result.cell), launch)
        run = replace(run, seconds=result.seconds)
    else:
        run = _evaluate_head(config, result)
    return publish_run(run, on_published).version


def _run_of(result: CellResult) -> str:
    """Return the name of the run under which a head on features is published."""
    return f"compare-{result.cell.id}"


def _evaluate_head(config: CompareConfig, result: CellResult) -> EvaluatedRun:
    """Write the result of a run that has the backbone, and the head that was trained on it."""
    alone = Group(alone=True)
    task = resolve_task(
        plan_training(train_config(config, result.cell), _run_of(result)), 1, on_gpu=False
    )
    network = initial_network(task, alone).network
    assert result.weights is not None, "a head on features has weights"
    network.classifier.load_state_dict(read_head(open_store(task.config.models), result.weights))

    dataset = open_dataset(task.config.dataset, version=task.dataset_version)
    samples = labelled_samples(dataset, task.config, task.classes)
    stored = open_key(task.config.dataset, str(result.cell.settings["features"]))
    if stored is None:
        raise NotFoundError("the features of this row have been deleted: run the command again")
    rows = np.concatenate([samples.validation.rows, samples.test.rows])
    ids = dataset.index.column("sample_id").take(pa.array(rows))
    inputs = FeatureInputs(torch.from_numpy(stored.read(ids)), rows)
    evaluator = Evaluator(inputs, task.classes, alone, 1, torch.float32)
    head, temperature = network.classifier.eval(), result.temperature
    chosen = head
    if result.chosen is not None:  # a refit head has seen the validation pictures
        chosen = copy.deepcopy(head)
        chosen.load_state_dict(read_head(open_store(task.config.models), result.chosen))
    validation = evaluator.compute_logits(chosen, samples.validation)
    test = evaluate_test(task, head, evaluator, samples.test, validation, temperature)
    trained = TrainResult(
        settings={"precision": "float32"},
        regime="frozen",
        metrics={
            "val": compute_split_metrics(validation, task.classes, alone, temperature),
            "test": test.metrics,
        },
        temperature=temperature,
        params_total=sum(parameter.numel() for parameter in network.parameters()),
        params_trainable=result.params_trainable,
    )
    written = write_result(task, network.eval(), dataset, samples.test, test.predictions, trained)
    return EvaluatedRun(task=task, result=written, seconds=result.seconds)
