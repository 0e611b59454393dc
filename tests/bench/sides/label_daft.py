"""Daft's native runner with a class that holds the model: download, decode, resize, classify.

- `apply`: the transform of torchvision for each picture, as in Daft's comparison with Ray Data.
- `resize`: the resize of Daft, which squashes; the class normalizes.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import daft  # type: ignore[import-not-found]  # lives in the peers' environment
import numpy as np
import torch
from daft import DataType, col
from torchvision import transforms

from tests.bench.sides.label_network import MEAN, STD, Classifier, measure_each

ANSWER = DataType.struct({"label": DataType.string(), "score": DataType.float32()})


def classifier(model: str, options: dict[str, Any]) -> Any:
    """Return the class for `actors` processes or threads, with batches of `batch`."""

    @daft.cls(max_concurrency=options["actors"], use_process=options["process"])
    class Model:
        def __init__(self) -> None:
            self.classify = Classifier(model)

        @daft.method.batch(  # type: ignore[untyped-decorator]
            return_dtype=ANSWER, batch_size=options["batch"], unnest=True
        )
        def label(self, images: Any) -> list[dict[str, Any]]:
            if not len(images):
                return []
            batch = torch.from_numpy(np.stack(images.to_pylist()))
            if batch.dtype == torch.uint8:
                batch = self.classify.normalize(batch.permute(0, 3, 1, 2))
            labels, scores = self.classify(batch)
            return [
                {"label": label, "score": score}
                for label, score in zip(labels, scores, strict=True)
            ]

    return Model()


def infer(source: str, out: str, request: dict[str, Any], options: dict[str, Any]) -> None:
    """Label a folder of pictures."""
    size = request["size"]
    files = daft.from_glob_path(f"{source}/**/*.jpg")
    image = col("path").download().decode_image(mode="RGB")
    if options["form"] == "apply":
        shape = DataType.tensor(DataType.float32(), shape=(3, size, size))
        image = image.apply(partial(_transform, size=size), return_dtype=shape)
    else:
        image = image.resize(size, size)
    pictures = files.select(col("path"), image.alias("image"))
    pictures.select(
        col("path"), classifier(request["model"], options).label(col("image"))
    ).write_parquet(out)


def _transform(image: Any, size: int) -> Any:
    steps = [
        transforms.ToTensor(),
        transforms.Resize((size, size)),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)(image).numpy()


def main(request: dict[str, Any]) -> list[list[float]]:
    """Measure each of the options."""
    daft.set_runner_native()
    return measure_each(infer, request)


if __name__ == "__main__":
    print(json.dumps({"seconds": main(json.loads(sys.argv[1])), "version": daft.__version__}))
