"""Datasets for the benches of training, made without Ray and without the peers' environment.

The content of a picture does not change the time of a step. So the pictures are random patches of
colour, greenish or reddish by class, so that the loss can decrease.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from afinar.config.ingest import IngestConfig
from afinar.ingestion.driver import run_ingest
from afinar.units.executor import InlineExecutor
from tests.bench.world import WrongBenchError

TINTS = {"north": (70, 150, 80), "south": (160, 90, 70)}
HELD = 16  # pictures to validate and to test with; few, so that an epoch is mostly training


def make_dataset(folder: Path, size: int, train: int) -> Path:
    """Make a dataset with `train` pictures to train on, of `size` by `size` pixels."""
    source, dataset = folder / "source", folder / "dataset"
    first = 0
    for split, count in {"train": train, "validation": HELD, "test": HELD}.items():
        for number in range(count):
            label = list(TINTS)[number % 2]
            path = source / split / label / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_picture(first + number, size, TINTS[label]))
        first += count
    config = IngestConfig(source=str(source), dataset=str(dataset), size=size, split="folder")
    summary = run_ingest(config, InlineExecutor()).summary
    if summary.samples != train + 2 * HELD:
        raise WrongBenchError(f"{summary.samples} of {train + 2 * HELD} pictures were ingested")
    return dataset


def _picture(seed: int, size: int, tint: tuple[int, int, int]) -> bytes:
    rng = np.random.default_rng(seed)
    patches = np.clip(np.array(tint) + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(patches).resize((size, size), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    image.save(sink, format="JPEG", quality=90)
    return sink.getvalue()
