"""The grid of a comparison: which cells there are, grouped as they are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from afinar.comparison.cells import Cell, HeadName
from afinar.config.compare import CompareConfig
from afinar.config.train import Pool, TrainConfig
from afinar.dataset.reader import Dataset
from afinar.features.key import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One cut of one backbone. `spec` is that of its features, None if it has no weights."""

    backbone: str
    cut: str
    pool: Pool
    spec: FeatureSpec | None


def head_cells(config: CompareConfig, dataset: Dataset, matrix: Matrix) -> list[Cell]:
    """Return the cells of heads on the features of a cut.

    Neighbours, and a linear head on all training pictures, do not depend on chance: one seed.
    """
    if matrix.spec is None or "frozen" not in config.regimes:
        return []
    settings: dict[str, Any] = {**_common(dataset), "features": matrix.spec.key}
    cells = []
    for fraction in config.shares:
        names: list[HeadName] = ["knn", *config.heads]
        for head in names:
            has_chance = head == "mlp" or fraction < 1
            if head == "knn" and fraction < 1:
                continue
            options: dict[str, Any] = {}
            if head == "mlp":
                options = {"hidden": config.hidden, "dropout": config.dropout}
            elif head == "linear" and config.refit:
                options = {"refit": True}
            cells += [
                Cell(
                    backbone=matrix.backbone,
                    cut=matrix.cut,
                    pool=matrix.pool,
                    head=head,
                    regime="frozen",
                    fraction=fraction,
                    seed=seed,
                    settings={**settings, **options},
                )
                for seed in range(config.seeds if has_chance else 1)
            ]
    return cells


def training_cells(config: CompareConfig, dataset: Dataset, matrices: list[Matrix]) -> list[Cell]:
    """Return the cells of trainings: each regime at the last cut and pooling of each backbone."""
    last = {matrix.backbone: matrix for matrix in matrices}
    return [
        Cell(
            backbone=matrix.backbone,
            cut=matrix.cut,
            pool=matrix.pool,
            head=config.heads[0],
            regime=regime,
            fraction=1.0,
            seed=seed,
            settings={**_common(dataset), **_of_training(config, matrix, regime)},
        )
        for matrix in last.values()
        for regime in config.regimes
        if regime == "scratch" or (matrix.spec is not None and regime != "frozen")
        for seed in range(config.seeds)
    ]


def _common(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "dataset": dataset.store.root,
        "version": manifest.version,
        "classes": manifest.classes,
    }


def _of_training(config: CompareConfig, matrix: Matrix, regime: str) -> dict[str, Any]:
    is_mlp = config.heads[0] == "mlp"
    return {
        "weights": matrix.spec.weights if matrix.spec and regime != "scratch" else "none",
        "input_size": config.input_size,
        "epochs": config.epochs,
        "augment": config.augment,
        "batch_size": config.batch_size,
        **({"hidden": config.hidden, "dropout": config.dropout} if is_mlp else {}),
    }


def train_config(config: CompareConfig, cell: Cell) -> TrainConfig:
    """Return the training of a cell; of a head on features, the one that would publish it."""
    assert cell.head != "knn", "neighbours are not a network"
    return TrainConfig(
        dataset=config.dataset,
        models=config.runs,
        backbone=cell.backbone,
        weights="none" if cell.regime == "scratch" else config.weights,
        cut=cell.cut,
        pool=cell.pool,
        head=cell.head,
        hidden=config.hidden,
        dropout=config.dropout,
        input_size=config.input_size,
        regime=cell.regime,
        refit=bool(cell.settings.get("refit")),
        epochs=config.epochs,
        augment=config.augment,
        batch_size=config.batch_size,
        address=config.address,
        workers=config.workers,
        seed=cell.seed,
    )
