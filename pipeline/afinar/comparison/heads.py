"""Heads of one feature matrix: what one task of a comparison does. It reads no pixels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afinar.comparison.cells import (
    Cell,
    CellResult,
    SplitScores,
    put_cell,
    put_head,
    put_predictions,
    read_cell,
)
from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import NotFoundError
from afinar.features.reader import Features as StoredFeatures
from afinar.features.reader import open_key
from afinar.inference.cpu import use_worker_cores
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.heads import build_head
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.training.batches import Samples
from afinar.training.distributed import Group
from afinar.training.linear_probe import (
    Features,
    LinearHead,
    Objective,
    refit_head,
    solve_head,
)
from afinar.training.metrics import compute_metrics, fit_temperature
from afinar.training.mlp_head import fit_mlp
from afinar.training.neighbours import neighbour_logits
from afinar.training.task import LabelledSamples, labelled_samples


@dataclass(frozen=True, kw_only=True)
class HeadTask:
    """All cells of one feature matrix that are not finished.

    `params_backbone` is the number of parameters of the backbone up to the cut.
    """

    dataset: str
    version: int
    runs: str
    key: str
    params_backbone: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class HeadTaskResult:
    """Number of the cells that were computed, and seconds of reading the features."""

    key: str
    computed: int
    seconds: float


@dataclass(frozen=True)
class _Matrix:
    """Features of all labelled samples by split, as one task has them in memory."""

    stored: StoredFeatures
    samples: LabelledSamples
    sample_ids: pa.ChunkedArray
    classes: list[str]

    @cached_property
    def train(self) -> Features:
        return self._read(self.samples.train)

    @cached_property
    def validation(self) -> Features:
        return self._read(self.samples.validation)

    @cached_property
    def test(self) -> Features:
        return self._read(self.samples.test)

    def ids_of(self, samples: Samples) -> pa.Array:
        return self.sample_ids.take(pa.array(samples.rows)).combine_chunks()

    def _read(self, samples: Samples) -> Features:
        values = self.stored.read(self.ids_of(samples))
        return Features(torch.from_numpy(values), torch.from_numpy(samples.targets))


def train_heads(task: HeadTask) -> HeadTaskResult:
    """Train and evaluate the cells of a task, and store each as soon as it is finished."""
    started = time.monotonic()
    store = open_store(task.runs)
    matrix = _open(task)
    _ = matrix.train, matrix.validation, matrix.test
    seconds = time.monotonic() - started
    computed = 0
    for cell in task.cells:
        if read_cell(store, cell) is None:
            put_cell(store, _train(cell, matrix, store, task.params_backbone))
            computed += 1
    return HeadTaskResult(task.key, computed, seconds)


def make_head_trainer() -> Callable[[HeadTask], HeadTaskResult]:
    """Return the work of a worker process."""
    use_worker_cores()
    return train_heads


def _open(task: HeadTask) -> _Matrix:
    dataset = open_dataset(task.dataset, version=task.version)
    stored = open_key(task.dataset, task.key)
    if stored is None:
        raise NotFoundError(
            f"the features {task.key} of {task.dataset} have been deleted: run the command again"
        )
    config = TrainConfig(dataset=task.dataset, models=task.runs)
    samples = labelled_samples(dataset, config, dataset.classes)
    return _Matrix(stored, samples, dataset.index.column("sample_id"), dataset.classes)


def subset(targets: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """Return positions of a share of each class, at least one; a larger share has the smaller."""
    if fraction >= 1:
        return np.arange(len(targets))
    order = np.random.default_rng(seed).permutation(len(targets))
    chosen = []
    for label in np.unique(targets):
        of_class = order[targets[order] == label]
        chosen.append(of_class[: max(1, math.ceil(fraction * len(of_class)))])
    return np.sort(np.concatenate(chosen))


def _train(cell: Cell, matrix: _Matrix, store: Store, params_backbone: int) -> CellResult:
    started = time.monotonic()
    positions = torch.from_numpy(subset(matrix.samples.train.targets, cell.fraction, cell.seed))
    train = Features(matrix.train.values[positions], matrix.train.targets[positions])
    alone = Group(alone=True)
    head, chosen, history = _fit(cell, train, matrix)
    with torch.no_grad():
        logits = {
            "validation": (chosen or head)(matrix.validation.values),
            "test": head(matrix.test.values),
        }
    seconds = time.monotonic() - started

    scores = {
        name: _scores(logits[name], split.targets, matrix.classes)
        for name, split in (("validation", matrix.validation), ("test", matrix.test))
    }
    predicted = logits["test"].argmax(dim=1).numpy()
    ids, labels = matrix.ids_of(matrix.samples.test), matrix.samples.test.targets
    module = head if isinstance(head, nn.Module) else None
    trainable = sum(parameter.numel() for parameter in module.parameters()) if module else 0
    temperature = 1.0
    if cell.head == "mlp":
        temperature = fit_temperature(logits["validation"], matrix.validation.targets, alone)
    return CellResult(
        cell=cell,
        validation=scores["validation"],
        test=scores["test"],
        params_total=params_backbone + trainable,
        params_trainable=trainable,
        seconds=round(seconds, 3),
        predictions=put_predictions(store, ids, labels, predicted),
        history=list(history),
        weights=put_head(store, module.state_dict()) if module else None,
        chosen=put_head(store, chosen.state_dict()) if chosen else None,
        temperature=temperature,
    )


class _Fit(NamedTuple):
    """A function from plain features to logits, and its history on validation.

    `chosen` is the head before a refit, None without one.
    """

    head: Callable[[Tensor], Tensor]
    chosen: nn.Linear | None = None
    history: Sequence[dict[str, float]] = ()


def _fit(cell: Cell, train: Features, matrix: _Matrix) -> _Fit:
    classes, validation = len(matrix.classes), matrix.validation
    if cell.head == "knn":
        return _Fit(lambda values: neighbour_logits(train, values, classes))
    if cell.head == "mlp":
        module = build_head(head_architecture(cell, classes), train.values.shape[1])
        fitted = fit_mlp(module, train, validation, cell.seed)
        return _Fit(fitted.module, history=fitted.history)

    objective = Objective(classes)
    chosen = solve_head(train, validation, objective)
    if not cell.settings.get("refit"):
        return _Fit(_as_layer(chosen))
    both = refit_head(chosen, train, validation, objective)
    return _Fit(_as_layer(both), chosen=_as_layer(chosen))


def _as_layer(solved: LinearHead) -> nn.Linear:
    classes, width = solved.weight.shape
    layer = nn.Linear(width, classes)
    with torch.no_grad():
        layer.weight.copy_(solved.weight)
        layer.bias.copy_(solved.bias)
    return layer


def head_architecture(cell: Cell, classes: int) -> Architecture:
    """Return the architecture of a cell's head; its input size is not used."""
    return Architecture(
        backbone=cell.backbone,
        cut=cell.cut,
        head="mlp" if cell.head == "mlp" else "linear",
        input_size=1,
        classes=classes,
        pool=cell.pool,
        hidden=int(cell.settings.get("hidden", 256)),
        dropout=float(cell.settings.get("dropout", 0.2)),
    )


def _scores(logits: Tensor, targets: Tensor, classes: list[str]) -> SplitScores:
    metrics = compute_metrics(logits, targets, classes, Group(alone=True))
    return SplitScores(
        top1=metrics.top1, macro_f1=metrics.macro_f1, loss=metrics.loss, samples=metrics.samples
    )
