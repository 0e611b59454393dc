"""Accuracy of trainings whose shuffle sees a tenth of the dataset at a time.

    python -m tests.bench windows      minutes on two cores

Twenty classes of real pictures: the ten handwritten digits of scikit-learn (UCI, CC BY 4.0), white
on black, and the same pictures inverted. They are small, so that enough of them can be tested to
tell half a point.
"""

from __future__ import annotations

import tempfile
from math import sqrt
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from afinar.config.ingest import IngestConfig
from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.ingestion.driver import run_ingest
from afinar.training.distributed import Group
from afinar.training.task import plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor
from tests.bench.table import Table
from tests.bench.world import WrongBenchError, scaled

SIDE: Final = 64
SEEDS: Final = 5
POINTS: Final = 0.005
"""Largest loss of accuracy."""
WINDOW_MB: Final = 4
_ALL_MB: Final = 1000
HEALTHY: Final = 0.9
"""Accuracy that the full shuffle must reach, of 20 classes."""


def windows() -> bool:
    """Require the accuracy of a window of a tenth to be within half a point of a full shuffle's."""
    with tempfile.TemporaryDirectory() as scratch:
        dataset = _ingest(Path(scratch))
        shards = open_dataset(dataset).shards
        parts = sum(ref.bytes for ref in shards) / (WINDOW_MB * 2**20)
        scores = {
            window_mb: np.array(
                [_accuracy(dataset, scratch, window_mb, seed) for seed in range(SEEDS)]
            )
            for window_mb in (_ALL_MB, WINDOW_MB)
        }
    full, windowed = scores[_ALL_MB], scores[WINDOW_MB]
    if full.mean() < HEALTHY:
        raise WrongBenchError(f"the full shuffle has an accuracy of {full.mean():.1%} only")
    differences = windowed - full
    error = differences.std(ddof=1) / sqrt(len(differences)) if len(differences) > 1 else 0.0
    table = Table(("shuffle", "test accuracy, %", "difference, points", "limit", "met"))
    table.add("of all", _percent(full), "", "", "")
    table.limit(
        f"windows of 1/{parts:.0f}, {len(shards)} shards",
        _percent(windowed),
        f"{100 * differences.mean():+.2f} ± {100 * error:.2f}",
        f"≥ -{100 * POINTS:g}",
        holds=differences.mean() >= -POINTS,
    )
    return table.show("windows: small_cnn from scratch on 20 classes of digits")


def _percent(scores: np.typing.NDArray[np.float64]) -> str:
    return f"{100 * scores.mean():.2f} ({100 * scores.min():.1f}–{100 * scores.max():.1f})"


def _ingest(scratch: Path) -> str:
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        levels = (pixels * (255 / 16)).astype(np.uint8)
        for name, image in ((f"white-{digit}", levels), (f"black-{digit}", 255 - levels)):
            path = scratch / "pictures" / name / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    dataset = str(scratch / "dataset")
    config = IngestConfig(
        source=str(scratch / "pictures"), dataset=dataset, size=SIDE, split="0.5,0.1,0.4"
    )
    run_ingest(config, InlineExecutor())
    return dataset


def _accuracy(dataset: str, scratch: str, window_mb: int, seed: int) -> float:
    """Train a small network and return the test accuracy of its best epoch."""
    config = TrainConfig(
        dataset=dataset,
        models=f"{scratch}/models-{window_mb}-{seed}",
        backbone="small_cnn",
        weights="none",
        regime="scratch",
        input_size=SIDE,
        epochs=scaled(12),
        batch_size=64,
        augment="none",
        seed=seed,
        workers=1,
        window_mb=window_mb,
    )
    return float(train(plan_training(config, "run"), Group()).metrics["test"]["top1"])
