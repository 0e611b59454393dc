"""The side of afinar in `batches`, and its bound: a gather from a memory map of the pixels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.training.loading import ShardWindows, load_batches
from afinar.training.sampler import epoch_order, global_batches
from tests.bench.epochs import Epoch, Pixels, measure_each

SEED = 3
RowNumbers = NDArray[np.int64]
Batches = Iterator[tuple[list[int], Pixels]]


def our_batches(
    dataset: Dataset, seed: int, epoch: int, batch_size: int
) -> Iterator[tuple[RowNumbers, Pixels]]:
    """Yield rows of the index and their pixels, as training reads them."""
    windows = ShardWindows.of(dataset, np.arange(len(dataset.index)), TrainConfig.window_mb * 2**20)
    order, _ = epoch_order(windows.shards, seed, epoch, windows.size)
    yield from load_batches(dataset.read, global_batches(order, batch_size), threads=0)


def afinar(request: dict[str, Any], options: dict[str, Any]) -> Epoch:
    """Return a reader of mapped shards."""
    dataset = open_dataset(f"{request['stores']}/dataset")
    numbers = np.array([int(Path(uri).stem) for uri in dataset.index.column("uri").to_pylist()])
    epochs = count()

    def epoch() -> Batches:
        for rows, images in our_batches(dataset, SEED, next(epochs), request["batch"]):
            yield numbers[rows].tolist(), images

    return epoch


def gather(request: dict[str, Any], options: dict[str, Any]) -> Epoch:
    """Return a reader of one memory map in the same order, by `numpy.take` or by an index."""
    pixels = np.load(f"{request['stores']}/pixels.npy", mmap_mode="r")
    epochs = count()

    def epoch() -> Batches:
        order, _ = epoch_order(np.zeros(len(pixels), np.int64), SEED, next(epochs), window=1)
        for rows in global_batches(order, request["batch"]):
            images = np.take(pixels, rows, axis=0) if options["how"] == "take" else pixels[rows]
            yield rows.tolist(), np.asarray(images)

    return epoch


FORMS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Epoch]] = {
    "afinar": afinar,
    "gather": gather,
}


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure each of the options."""
    return measure_each(FORMS[request["form"]], request)


if __name__ == "__main__":
    print(json.dumps({"runs": main(json.loads(sys.argv[1])), "version": np.__version__}))
