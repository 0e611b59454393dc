"""A small world for nights: uploads of real photographs, an archive, and the nights over them."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afinar.config.base import JobConfig
from afinar.config.nightly import NightlyConfig
from afinar.models.registry.aliases import champion_number
from afinar.nightly.night import run_night
from afinar.nightly.records import NightRecord
from afinar.nightly.steps import Services
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.task import TrainTask
from afinar.training.worker import run_worker
from afinar.units.executor import Executor, InlineExecutor

# Class: photograph of scikit-learn, and the part of it (left, upper, right, lower) of its crops.
REGIONS: Final = {
    "leaves": ("flower.jpg", (0, 0, 190, 427)),
    "petals": ("flower.jpg", (230, 90, 470, 330)),
    "roofs": ("china.jpg", (0, 110, 640, 260)),
    "stones": ("china.jpg", (0, 280, 640, 427)),
}
FURTHER: Final = {"sky": ("china.jpg", (0, 0, 640, 80))}
PX: Final = 64
# A few seconds per night: an early cut with few features. A solved head depends on no random order.
TRAINING: Final = """
cut = "features.4.2.add"
pool = "average+std"
input_size = 64
precision = "float32"
workers = 1
"""


@cache
def _photo(name: str) -> NDArray[np.uint8]:
    from sklearn.datasets import load_sample_image

    return np.asarray(load_sample_image(name), np.uint8)


def crop(rng: np.random.Generator, label: str, noise: float) -> bytes:
    """Return a JPEG of a random crop of a class's photograph with noise."""
    name, (left, upper, right, lower) = {**REGIONS, **FURTHER}[label]
    side = int(rng.integers(40, 72))
    x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(upper, lower - side + 1))
    pixels = _photo(name)[y : y + side, x : x + side].astype(float)
    if rng.integers(2):
        pixels = pixels[:, ::-1]
    pixels = pixels * rng.uniform(0.5, 1.3) + rng.normal(0, noise, pixels.shape)
    sink = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


class PhotoWorld:
    """Uploads and an archive of crops of photographs, and nights over them without Ray.

    `size` is the side of the stored pictures; options of the nights override the defaults.
    """

    def __init__(self, root: Path, **options: Any) -> None:
        self.root, self.options = root, options
        self.rng = np.random.default_rng(0)
        self.count = 0
        root.mkdir(parents=True, exist_ok=True)
        (root / "training.toml").write_text(TRAINING)

    def upload(
        self, label: str, count: int, *, folder: str = "", true: str = "", noise: float = 30.0
    ) -> list[Path]:
        """Write pictures of a class, which show the class `true` if it is given."""
        paths = []
        for _ in range(count):
            self.count += 1
            path = self.root / "uploads" / label / folder / f"{self.count:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(crop(self.rng, true or label, noise))
            paths.append(path)
        return paths

    def upload_all(self, each: int, **options: Any) -> None:
        """Write pictures of every class."""
        for label in REGIONS:
            self.upload(label, each, **options)

    def archive(self, count: int, noise: float = 30.0) -> None:
        """Write pictures of all classes without labels, named after their class."""
        folder = self.root / "archive"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            self.count += 1
            label = list(REGIONS)[number % len(REGIONS)]
            (folder / f"{self.count:05}-{label}.jpg").write_bytes(crop(self.rng, label, noise))

    def config(self, **options: Any) -> NightlyConfig:
        names = ("dataset", "models", "nights", "archive", "predictions")
        places = {name: str(self.root / name) for name in names}
        values = {
            "source": str(self.root / "uploads"),
            "backbone": "efficientnet_lite0",
            "weights": "package",
            "regime": "frozen",
            "size": PX,
            "split": "0.5,0.1,0.4",
            "training": str(self.root / "training.toml"),
        }
        return NightlyConfig(**{**places, **values, **self.options, **options})

    def night(self, **options: Any) -> NightRecord:
        return run_night(self.config(**options), INLINE)

    @property
    def champion(self) -> int | None:
        return champion_number(open_store(str(self.root / "models")))


def launch(task: TrainTask) -> None:
    run_worker(task, Group())


def executor(config: JobConfig) -> Executor:
    del config
    return InlineExecutor()


INLINE: Final = Services(executor=executor, launch=launch)
