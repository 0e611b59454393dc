"""Ray Data's batch inference on images, with the network of torchvision or afinar's predictor.

- `map`, as in its guide: read, a transform of torchvision for each row, an actor pool, Parquet.
- `sized`: pictures are resized when they are read, uint8 is sent, and the actors normalize.
- `bytes`: files in few blocks, decoded in batches with Pillow.

All squash. With `predictor` the actors hold afinar's predictor, in afinar's environment.
"""

from __future__ import annotations

import io
import json
import sys
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from PIL import Image
from torchvision import transforms

from tests.bench.sides.label_network import MEAN, STD, Classifier, measure_each


class Plain:
    """The network of torchvision, on normalized or on uint8 pictures."""

    def __init__(self, model: str) -> None:
        self._classify = Classifier(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = torch.from_numpy(batch["image"])
        if images.dtype == torch.uint8:
            images = self._classify.normalize(images.permute(0, 3, 1, 2))
        labels, scores = self._classify(images)
        return {
            "path": batch["path"],
            "label": np.array(labels),
            "score": np.array(scores, dtype=np.float32),
        }


class Ours:
    """afinar's predictor on uint8 pictures."""

    def __init__(self, model: str) -> None:
        from afinar.inference.predictor import load_predictor
        from afinar.models.registry.versions import find_model

        torch.set_num_threads(1)
        # As for a job of many pictures: in OpenVINO, like afinar's side.
        self._predictor = load_predictor(*find_model(model), precision="auto", pictures=10**9)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        scores = self._predictor(np.ascontiguousarray(batch["image"]))
        labels = [self._predictor.classes[number] for number in scores.argmax(axis=1)]
        return {"path": batch["path"], "label": np.array(labels), "score": scores.max(axis=1)}


def read(source: str, size: int, options: dict[str, Any]) -> ray.data.Dataset:
    """Return pictures as `image` with their `path`, in one of the three forms."""
    blocks = options["blocks"]
    if options["form"] == "bytes":
        files = ray.data.read_binary_files(source, include_paths=True, override_num_blocks=blocks)
        return files.map_batches(partial(_decode, size=size), batch_size=64)
    if options["form"] == "sized":
        return ray.data.read_images(
            source, size=(size, size), mode="RGB", include_paths=True, override_num_blocks=blocks
        )
    pictures = ray.data.read_images(
        source, mode="RGB", include_paths=True, override_num_blocks=blocks
    )
    return pictures.map(partial(_transform, size=size))


def _transform(row: dict[str, Any], size: int) -> dict[str, Any]:
    steps = [
        transforms.ToTensor(),
        transforms.Resize((size, size)),
        transforms.Normalize(MEAN, STD),
    ]
    return {"path": row["path"], "image": transforms.Compose(steps)(row["image"])}


def _decode(batch: dict[str, Any], size: int) -> dict[str, Any]:
    images = np.empty((len(batch["bytes"]), size, size, 3), dtype=np.uint8)
    for position, data in enumerate(batch["bytes"]):
        with Image.open(io.BytesIO(data)) as image:
            images[position] = np.asarray(
                image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            )
    return {"path": batch["path"], "image": images}


def infer(source: str, out: str, request: dict[str, Any], options: dict[str, Any]) -> None:
    """Label a folder.

    Two actors request half a core each, since otherwise no core is left for reading.
    """
    answers = read(source, request["size"], options).map_batches(
        Ours if request["predictor"] else Plain,
        fn_constructor_args=[request["model"]],
        batch_size=options["batch"],
        compute=ray.data.ActorPoolStrategy(size=options["actors"]),
        num_cpus=1 / options["actors"],
    )
    answers.write_parquet(out)


def main(request: dict[str, Any]) -> list[list[float]]:
    """Measure each of the options."""
    ray.init("local", num_cpus=request["cores"], log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return measure_each(infer, request)


if __name__ == "__main__":
    print(json.dumps({"seconds": main(json.loads(sys.argv[1])), "version": ray.__version__}))
