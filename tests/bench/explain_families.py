"""Maps of the networks of each family, and their sanity check with random heads.

    python -m tests.bench explain_families              all families
    python -m tests.bench.explain_families VGG ViT      some of them

There are real weights of one backbone without a hub, which is fine-tuned. The other families are
trained from random weights, on pictures of objects at random places in noise, and on noise without
an object: as in photographs, the background alone tells none of the other classes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

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


class Family(NamedTuple):
    """A network of a family, its input size, and how many epochs it needs to learn the objects."""

    backbone: str
    size: int = 224
    epochs: int = 6
    weights: str = "none"


FAMILIES: Final = {
    "VGG": Family("vgg11_bn", size=128),  # at 224 px its training takes half an hour
    "ResNet": Family("resnet18", size=128),
    "MobileNet": Family("mobilenet_v2"),
    "Inception": Family("inception_v3"),
    "EfficientNet": Family("efficientnet_lite0", epochs=3, weights="imagenet"),
    "ConvNeXt": Family("timm:convnext_atto"),
    "ViT": Family("timm:vit_tiny_patch16_224"),
}

ACCURATE = 0.9
"""Accuracy that a network must have. Maps of a network that guesses say nothing."""
_NOTHING = "nothing"
"""Class of the pictures without an object."""
_OBJECTS = ("cross", "disc", "stripes")
_PER_CLASS = 225  # pictures, of which a seventh is for the test
_EXPLAINED = 40


def explain_families(names: list[str] | None = None) -> bool:
    """Train one network of each family on objects in noise, and check its maps."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        families = [_family(name, Path(scratch)) for name in names or FAMILIES]
    return all(families)


def make_objects(folder: Path, size: int) -> str:
    """Ingest pictures of crosses, discs, stripes and nothing in noise; once for each size."""
    dataset = folder / f"dataset-{size}"
    if dataset.exists():
        return str(dataset)
    rng = np.random.default_rng(0)
    pictures = folder / f"pictures-{size}"
    for name in (*_OBJECTS, _NOTHING):
        (pictures / name).mkdir(parents=True)
        for number in range(scaled(_PER_CLASS)):
            thing = _object(name, size // 2, rng)
            entry = paste(thing if name != _NOTHING else thing[:0, :0], size, rng)
            path = pictures / name / f"{number:04d}-{entry.top}-{entry.left}.png"
            path.write_bytes(encode_png(entry.image))
    config = IngestConfig(source=str(pictures), dataset=str(dataset), size=size, fit="crop")
    run_ingest(config, InlineExecutor())
    return str(dataset)


def _family(name: str, scratch: Path) -> bool:
    family, models = FAMILIES[name], str(scratch / name.lower())
    dataset = make_objects(scratch, family.size)
    config = TrainConfig(
        dataset=dataset, models=models, backbone=family.backbone, weights=family.weights,
        regime="scratch" if family.weights == "none" else "full",
        input_size=family.size, epochs=family.epochs, batch_size=16,
    )  # fmt: skip
    task = plan_training(config, "run")
    publish(task, train(task, Group()), 1.0)
    network = load_explained(ModelSpec(model=f"{models}@1"))

    opened = open_dataset(dataset)
    sample = [
        picture
        for picture in dataset_inputs(opened, sample_rows(opened, "test", "", 2 * _EXPLAINED))
        if picture.label != _NOTHING
    ][:_EXPLAINED]
    images = np.stack([picture.load(network.stored_view) for picture in sample])
    labels = np.array([network.classes.index(str(picture.label)) for picture in sample])
    is_right = network.probabilities(images).argmax(axis=1) == labels
    print(f"{name}: {family.backbone}, {family.size} px, test accuracy {is_right.mean():.0%}")
    pasted = []
    for image, picture in zip(images, sample, strict=True):
        _, top, left = Path(picture.uri).stem.split("-")
        pasted.append(Planted(image, int(top), int(left), family.size // 2))
    if is_right.mean() < ACCURATE:
        raise WrongBenchError(f"{name} has learned too little")
    return check_maps(name, network, pasted, labels)


def _object(name: str, side: int, rng: np.random.Generator) -> Pixels:
    colours = [tuple(rng.integers(lo, lo + 100, 3).tolist()) for lo in (20, 130)]
    image = Image.new("RGB", (side, side), colours[0])
    draw, end = ImageDraw.Draw(image), side - 6
    if name == "disc":
        draw.ellipse((6, 6, end, end), fill=colours[1])
    elif name == "cross":
        draw.line((6, 6, end, end), fill=colours[1], width=12)
        draw.line((6, end, end, 6), fill=colours[1], width=12)
    else:
        for top in range(4, side, 16):
            draw.rectangle((0, top, side, top + 7), fill=colours[1])
    return np.asarray(image)


if __name__ == "__main__":
    sys.exit(not explain_families(sys.argv[1:] or None))
