"""Datasets for the benches of training, made without Ray and without the peers' environment.

The content of a picture does not change the time of a step. So the pictures are random patches of
colour, greenish or reddish by class, so that the loss can decrease.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afinar.config.ingest import IngestConfig
from afinar.ingestion.driver import run_ingest
from afinar.units.executor import InlineExecutor
from tests.bench.world import WrongBenchError

TINTS = {"north": (70, 150, 80), "south": (160, 90, 70)}
HELD = 16  # pictures to validate and to test with; few, so that an epoch is mostly training


def make_dataset(folder: Path, size: int, train: int, distinct: int = 0) -> Path:
    """Make a dataset with `train` pictures to train on, of `size` by `size` pixels.

    Only `distinct` of them differ in their pixels, if that is given; all differ in their bytes. All
    cores of the machine ingest them.
    """
    source, dataset = folder / "source", folder / "dataset"
    first = 0
    for split, count in {"train": train, "validation": HELD, "test": HELD}.items():
        for number in range(count):
            label = list(TINTS)[number % 2]
            path = source / split / label / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = first + number
            if distinct:
                # Seeds of one parity have one tint.
                data = _cached(seed % (2 * (distinct // 2)), size, TINTS[label])
                data += seed.to_bytes(4, "big")  # after the end marker
            else:
                data = _picture(seed, size, TINTS[label])
            path.write_bytes(data)
        first += count
    config = IngestConfig(source=str(source), dataset=str(dataset), size=size, split="folder")
    summary = run_ingest(config, ProcessExecutor() if distinct else InlineExecutor()).summary
    if summary.samples != train + 2 * HELD:
        raise WrongBenchError(f"{summary.samples} of {train + 2 * HELD} pictures were ingested")
    return dataset


class ProcessExecutor:
    """Runs units in one process per core, without Ray."""

    def run(
        self, make_work: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any], *_: Any
    ) -> Iterator[Any]:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(None, spawn, _make, (make_work,)) as pool:
            yield from pool.map(_run, tasks)


_WORK: list[Callable[[Any], Any]] = []


def _make(make_work: Callable[[], Callable[[Any], Any]]) -> None:
    _WORK.append(make_work())


def _run(task: Any) -> Any:
    return _WORK[0](task)


@lru_cache(maxsize=4096)
def _cached(seed: int, size: int, tint: tuple[int, int, int]) -> bytes:
    return _picture(seed, size, tint)


def _picture(seed: int, size: int, tint: tuple[int, int, int]) -> bytes:
    rng = np.random.default_rng(seed)
    patches = np.clip(np.array(tint) + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(patches).resize((size, size), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    image.save(sink, format="JPEG", quality=90)
    return sink.getvalue()
