"""Maps of the networks of each family, and their sanity check with random heads.

    python -m tests.bench explain_families              all families
    python -m tests.bench.explain_families VGG ViT      some of them

There are real weights of one backbone without a hub. So the families are trained here, from random
weights, on pictures of objects at random places in noise.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from afinar.config.ingest import IngestConfig
from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.explain.images import encode_png
from afinar.explain.network import ModelSpec, load_explained
from afinar.explain.pictures import dataset_inputs, sample_rows
from afinar.ingestion.driver import run_ingest
from afinar.training.distributed import Group
from afinar.training.publish import publish
from afinar.training.task import plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor
from tests.bench.explain import Pixels, Planted, check_maps, paste
from tests.bench.world import WrongBenchError, scaled

FAMILIES = {
    "VGG": "vgg11_bn",
    "ResNet": "resnet18",
    "MobileNet": "mobilenet_v2",
    "Inception": "inception_v3",
    "EfficientNet": "efficientnet_b0",
    "ConvNeXt": "convnext_tiny",
    "ViT": "vit_b_32",
}

ACCURATE = 0.9
"""Accuracy that a network must have. Maps of a network that guesses say nothing."""
_SIDE = 128
_OBJECT = 64
_TRAINED = 300  # pictures of each class


def explain_families(names: list[str] | None = None) -> bool:
    """Train one network of each family on objects in noise, and check its maps."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = make_objects(Path(scratch))
        families = [_family(name, dataset, Path(scratch)) for name in names or FAMILIES]
        return all(families)


def make_objects(folder: Path) -> str:
    """Ingest pictures of discs, crosses and stripes at random places in noise."""
    rng = np.random.default_rng(0)
    for name in ("cross", "disc", "stripes"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(scaled(_TRAINED)):
            entry = paste(_object(name, rng), _SIDE, rng)
            path = folder / "pictures" / name / f"{number:04d}-{entry.top}-{entry.left}.png"
            path.write_bytes(encode_png(entry.image))
    dataset = str(folder / "dataset")
    config = IngestConfig(source=str(folder / "pictures"), dataset=dataset, size=_SIDE, fit="crop")
    run_ingest(config, InlineExecutor())
    return dataset


def _family(name: str, dataset: str, scratch: Path) -> bool:
    models = str(scratch / name)
    config = TrainConfig(
        dataset=dataset, models=models, backbone=FAMILIES[name], regime="scratch", weights="none",
        input_size=_SIDE, epochs=6, batch_size=16,
    )  # fmt: skip
    task = plan_training(config, "run")
    publish(task, train(task, Group()), 1.0)
    network = load_explained(ModelSpec(model=f"{models}@1"))

    opened = open_dataset(dataset)
    sample = dataset_inputs(opened, sample_rows(opened, "test", "", 40))
    images = np.stack([picture.load(network.stored_view) for picture in sample])
    labels = np.array([network.classes.index(str(picture.label)) for picture in sample])
    is_right = network.probabilities(images).argmax(axis=1) == labels
    print(f"{name}: {FAMILIES[name]}, test accuracy {is_right.mean():.0%}")
    pasted = []
    for image, picture in zip(images, sample, strict=True):
        _, top, left = Path(picture.uri).stem.split("-")
        pasted.append(Planted(image, int(top), int(left), _OBJECT))
    if is_right.mean() < ACCURATE:
        raise WrongBenchError(f"{name} has learned too little")
    return check_maps(name, network, pasted, labels)


def _object(name: str, rng: np.random.Generator) -> Pixels:
    colours = [tuple(rng.integers(lo, lo + 100, 3).tolist()) for lo in (20, 130)]
    image = Image.new("RGB", (_OBJECT, _OBJECT), colours[0])
    draw, end = ImageDraw.Draw(image), _OBJECT - 6
    if name == "disc":
        draw.ellipse((6, 6, end, end), fill=colours[1])
    elif name == "cross":
        draw.line((6, 6, end, end), fill=colours[1], width=12)
        draw.line((6, end, end, 6), fill=colours[1], width=12)
    else:
        for top in range(4, _OBJECT, 16):
            draw.rectangle((0, top, _OBJECT, top + 7), fill=colours[1])
    return np.asarray(image)


if __name__ == "__main__":
    sys.exit(not explain_families(sys.argv[1:] or None))
