"""Copies and wrong labels that are planted in a set of real pictures, and where they are."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

KINDS = ("exact", "re-encoded", "resized", "cropped")
COPIES = 20  # of each kind
WRONG = 0.05  # share of wrong labels


@dataclass(frozen=True)
class Planted:
    """A set with problems: `copies` are pairs of file names by kind, `wrong` true labels by name.

    File names are unique within a set.
    """

    folder: Path
    copies: dict[str, list[tuple[str, str]]]
    wrong: dict[str, str]


def plant(pictures: Path, folder: Path, *, seed: int = 0) -> Planted:
    """Copy a set, one folder per class, add copies to it and move pictures to wrong classes.

    The two pictures of a pair have the same label. A picture of a pair is not moved.
    """
    rng = random.Random(seed)
    paths = sorted(path for path in pictures.rglob("*") if path.is_file())
    for number, path in enumerate(paths):
        target = folder / path.parent.name / f"{number:05d}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    files = sorted(folder.rglob("*.*"))
    rng.shuffle(files)
    copied = [files.pop() for _ in range(min(COPIES * len(KINDS), len(files) // 3))]
    copies: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    for number, path in enumerate(copied):
        kind = KINDS[number % len(KINDS)]
        copy = path.with_name(f"{kind}-{path.stem}{path.suffix if kind == 'exact' else '.jpg'}")
        copy.write_bytes(_MAKE[kind](path.read_bytes()))
        copies[kind].append((path.name, copy.name))

    classes = sorted(path.name for path in folder.iterdir())
    wrong = {}
    for path in files[: round(WRONG * len(paths))]:
        label = rng.choice([name for name in classes if name != path.parent.name])
        wrong[path.name] = path.parent.name
        path.rename(folder / label / path.name)
    return Planted(folder, copies, wrong)


def _exact(data: bytes) -> bytes:
    """Return the same picture as another file: a byte behind the end marker changes the hash."""
    return data + b"\0"


def _changed(change: Callable[[Any], Any], quality: int) -> Callable[[bytes], bytes]:
    def make(data: bytes) -> bytes:
        with Image.open(io.BytesIO(data)) as image:
            sink = io.BytesIO()
            change(image.convert("RGB")).save(sink, format="JPEG", quality=quality)
            return sink.getvalue()

    return make


def _smaller(image: Any) -> Any:
    return image.resize((round(0.7 * image.width), round(0.7 * image.height)))


def _cropped(image: Any) -> Any:
    """Cut 3 % of the width and of the height, from the left and from the top."""
    return image.crop((round(0.03 * image.width), round(0.03 * image.height), *image.size))


_MAKE: dict[str, Callable[[bytes], bytes]] = {
    "exact": _exact,
    "re-encoded": _changed(lambda image: image, 70),
    "resized": _changed(_smaller, 90),
    "cropped": _changed(_cropped, 90),
}
