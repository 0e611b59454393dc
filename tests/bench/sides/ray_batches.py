"""Ray Data: Parquet or JPEGs, shuffled files, `iter_torch_batches` with a local shuffle."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from tests.bench.epochs import Epoch, measure_each

BUFFER = 512  # samples of the local shuffle: eight batches


def parquet(stores: str) -> ray.data.Dataset:
    """Return the Parquet files with pixels."""
    return ray.data.read_parquet(f"{stores}/parquet", shuffle="files")


def images(stores: str) -> ray.data.Dataset:
    """Return the JPEGs, which have the size of the batches."""
    return ray.data.read_images(f"{stores}/jpegs", mode="RGB", include_paths=True, shuffle="files")


FORMS = {"parquet": parquet, "images": images}


def collate(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return a batch as tensors; the number of a JPEG is its name."""
    numbers = (
        batch["id"] if "id" in batch else np.array([int(Path(path).stem) for path in batch["path"]])
    )
    return {"id": torch.as_tensor(numbers), "image": torch.as_tensor(batch["image"])}


def reader(request: dict[str, Any], options: dict[str, Any]) -> Epoch:
    """Return a reader of `form` that fetches `ahead` batches before they are needed."""
    pictures = FORMS[options["form"]](request["stores"])
    epochs = count()

    def epoch() -> Iterator[tuple[list[int], Any]]:
        batches = pictures.iter_torch_batches(
            batch_size=request["batch"],
            prefetch_batches=options["ahead"],
            local_shuffle_buffer_size=BUFFER,
            local_shuffle_seed=next(epochs),
            collate_fn=collate,
        )
        for batch in batches:
            yield batch["id"].tolist(), batch["image"].numpy()

    return epoch


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure each of the options."""
    ray.init("local", num_cpus=request["cores"], log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return measure_each(reader, request)


if __name__ == "__main__":
    print(json.dumps({"runs": main(json.loads(sys.argv[1])), "version": ray.__version__}))
