"""JPEGs like photographs: crops of scikit-learn's two photographs, resized, with noise.

The photographs come with scikit-learn, in this environment or that of the peers. A picture is a
function of its seed. Every file is distinct. If more files are requested than are worth encoding,
the rest repeat them with other bytes after the JPEG's end marker, which no decoder reads.
"""

from __future__ import annotations

import io
import sysconfig
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.bench.world import PEERS, WrongBenchError

Size = tuple[int, int]
SMALL: Size = (500, 375)  # the most frequent size in ImageNet
MEDIUM: Size = (1024, 768)
LARGE: Size = (4032, 3024)  # 12 megapixels of a telephone
CLASSES = ("north", "south")


def make_pictures(folder: Path, size: Size, count: int, distinct: int = 0, seed: int = 0) -> Path:
    """Write `count` JPEGs of `size` into two class folders, and return `folder`.

    `distinct` of them (0: all) differ in pixels, the others repeat them.
    """
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    distinct = min(distinct or count, count)
    with ProcessPoolExecutor(max_workers=2) as pool:
        jobs = [(folder, size, count, distinct, seed, number) for number in range(distinct)]
        for _ in pool.map(_write, jobs, chunksize=8):
            pass
    return folder


def picture_path(folder: Path, number: int) -> Path:
    """Return the path of picture `number`."""
    return folder / CLASSES[number % 2] / f"{number:06d}.jpg"


def _write(job: tuple[Path, Size, int, int, int, int]) -> None:
    folder, size, count, distinct, seed, number = job
    data = photograph(size, seed + number)
    for copy in range(number, count, distinct):
        tail = b"" if copy == number else copy.to_bytes(4, "big")
        picture_path(folder, copy).write_bytes(data + tail)


def shown(seed: int) -> int:
    """Return the number of the photograph that `photograph` crops for this seed."""
    return int(np.random.default_rng(seed).integers(2))


def photograph(size: Size, seed: int) -> bytes:
    """Return a JPEG of `size`, with a quality of 85 to 95."""
    rng = np.random.default_rng(seed)
    source = _photographs()[int(rng.integers(2))]
    width, height = source.size
    scale = float(rng.uniform(0.5, 1.0))
    box_w, box_h = int(width * scale), int(width * scale * size[1] / size[0])
    box_h = min(box_h, height)
    left, top = int(rng.integers(width - box_w + 1)), int(rng.integers(height - box_h + 1))
    crop = source.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + box_w, top + box_h))
    if rng.integers(2):
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sink = io.BytesIO()
    _with_noise(crop, rng).save(sink, format="JPEG", quality=int(rng.integers(85, 96)))
    return sink.getvalue()


def _with_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Add noise that is the same in the three channels.

    It is drawn for a quarter of the picture and tiled, since drawing takes time.
    """
    height, width = image.size[1], image.size[0]
    tile = rng.normal(0, rng.uniform(2, 6), (-(-height // 2), -(-width // 2)))
    noise: NDArray[np.float32] = np.tile(tile, (2, 2))[:height, :width, None].astype(np.float32)
    return Image.fromarray(
        np.clip(np.asarray(image, dtype=np.float32) + noise, 0, 255).astype(np.uint8)
    )


_LOADED: list[Image.Image] = []


def _photographs() -> list[Image.Image]:
    if not _LOADED:
        images = "sklearn/datasets/images/*.jpg"
        folders = (
            Path(sysconfig.get_path("purelib")),
            *PEERS.parent.parent.glob("lib/*/site-packages"),
        )
        paths = next(
            (found for folder in folders if len(found := sorted(folder.glob(images))) == 2), []
        )
        if not paths:
            raise WrongBenchError("scikit-learn's two photographs are missing: run `make peers`")
        _LOADED.extend(Image.open(path).convert("RGB") for path in paths)
    return _LOADED
