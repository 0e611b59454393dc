"""Pictures that the sides of a comparison wrote, read back and compared with the files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps

from afinar.dataset.reader import open_dataset
from tests.bench.world import WrongBenchError

Pixels = NDArray[np.uint8]
RowNumbers = Iterator[tuple[str, Pixels]]

# Largest mean difference of a picture in levels of 255. Filters differ (area, triangle, bicubic),
# and one side writes JPEGs; another picture is off by 86 on average.
WORST_APART = 6.0


def read_afinar(out: Path, size: int) -> RowNumbers:
    """Yield the pictures of a dataset."""
    dataset = open_dataset(str(out))
    uris = dataset.index.column("uri").to_pylist()
    assert dataset.view.size == size
    for start in range(0, len(uris), 256):
        rows = list(range(start, min(start + 256, len(uris))))
        yield from zip((uris[row] for row in rows), dataset.read(rows), strict=True)


def read_frames(out: Path, size: int) -> RowNumbers:
    """Yield the pictures of Parquet files of Ray Data or Daft, with the columns path and image."""
    for file in sorted(out.rglob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(256, columns=["path", "image"]):
            images = batch.column("image")
            storage = images.storage if isinstance(images, pa.ExtensionArray) else images
            pixels = storage.flatten().to_numpy().reshape(-1, size, size, 3)
            yield from zip(
                (_path(uri) for uri in batch.column("path").to_pylist()), pixels, strict=True
            )


def read_img2dataset(out: Path, size: int) -> RowNumbers:
    """Yield the pictures of img2dataset's shards, in any of three formats, without its failures."""
    for table in (pq.read_table(file) for file in sorted(out.glob("*.parquet"))):
        if "jpg" in table.column_names:
            jpegs = dict(
                zip(table.column("key").to_pylist(), table.column("jpg").to_pylist(), strict=True)
            )
        else:
            jpegs = {}
        for key, uri in zip(
            table.column("key").to_pylist(), table.column("url").to_pylist(), strict=True
        ):
            data = jpegs.get(key) or _jpeg_of_shard(out, key)
            if data is not None:
                yield _path(uri), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


_TARS: dict[Path, dict[str, bytes]] = {}


def _jpeg_of_shard(out: Path, key: str) -> bytes | None:
    """Return a JPEG of a shard that is a folder or a tar; the key begins with its five digits."""
    shard = out / key[:5]
    if shard.is_dir():
        file = shard / f"{key}.jpg"
        return file.read_bytes() if file.exists() else None
    tar = shard.with_suffix(".tar")
    if tar not in _TARS:
        _TARS.clear()
        with tarfile.open(tar) as archive:
            members = [member for member in archive if member.name.endswith(".jpg")]
            _TARS[tar] = {Path(member.name).stem: _extracted(archive, member) for member in members}
    return _TARS[tar].get(key)


def _extracted(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _path(uri: str) -> str:
    return uri.removeprefix("file://")


def reference(data: bytes, size: int, fit: str) -> Pixels:
    """Decode a picture at full size and resize it with Pillow's bicubic filter.

    - `crop`: the centre square is resized.
    - `crop last`: the shorter side is resized, then the centre square is cut at whole pixels, up to
      half a pixel off.
    - `squash`: the whole picture is resized.
    """
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    if fit == "crop":
        return np.asarray(ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC))
    if fit == "squash":
        return np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC))
    width, height = (round(side * size / min(rgb.size)) for side in rgb.size)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(
        rgb.resize((width, height), Image.Resampling.BICUBIC).crop(
            (left, top, left + size, top + size)
        )
    )


def off(one: Pixels, other: Pixels) -> float:
    """Return the mean absolute difference of two pictures in levels of 255."""
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean())


def require_same(
    name: str, rows: RowNumbers, source: Path, size: int, fit: str, compared: int = 200
) -> float:
    """Compare `compared` pictures with the reference; return the worst mean difference in levels.

    Raises WrongBenchError if it exceeds `WORST_APART`, and unless every picture of `source` is
    there once, and no other.
    """
    wanted = {str(path) for path in source.rglob("*.jpg")}
    every = max(1, len(wanted) // compared)
    seen: set[str] = set()
    worst = 0.0
    for number, (path, pixels) in enumerate(rows):
        if path in seen or path not in wanted:
            reason = "twice" if path in seen else "which is not a picture"
            raise WrongBenchError(f"{name} wrote {path}, {reason}")
        if pixels.shape != (size, size, 3):
            raise WrongBenchError(f"{name} wrote {path} as {pixels.shape}")
        seen.add(path)
        if number % every == 0:
            worst = max(worst, off(pixels, reference(Path(path).read_bytes(), size, fit)))
    if seen != wanted:
        raise WrongBenchError(f"{name} wrote {len(seen)} of {len(wanted)} pictures")
    if worst > WORST_APART:
        raise WrongBenchError(
            f"{name}: a picture is {worst:.1f} levels off, {WORST_APART:g} are allowed"
        )
    return worst


def facts_of_shards(dataset: Path) -> dict[str, int]:
    """Return the sizes of a dataset's shards by name."""
    return {path.name: path.stat().st_size for path in (dataset / "shards").glob("*")}


def load_json(path: Path) -> dict[str, object]:
    """Read a JSON object from a file."""
    record: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return record
