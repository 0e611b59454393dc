"""Parts of several pages: tiles of pictures, and images as data URIs."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.evaluation.comparison import EvaluatedRun
from afinar.report.plots import thumbnail

_MISTAKES: Final = 12


@dataclass(frozen=True)
class Tile:
    """One picture with its title and its caption; `image` is a data URI."""

    image: str
    title: str
    caption: str


def data_uri(data: bytes, image_format: str) -> str:
    """Return the bytes of an image ("png" or "jpeg") as a URI that a page can contain."""
    return f"data:image/{image_format};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class ConfusionCell:
    """A count and its share of the true class, from 0 to 1."""

    count: int
    share: float


@dataclass(frozen=True)
class ConfusionRow:
    """One true class: a cell for each predicted class."""

    name: str
    cells: list[ConfusionCell]


def confusion_table(counts: NDArray[np.int64], classes: list[str]) -> list[ConfusionRow]:
    """Return counts [true class, predicted class] as rows of a table."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # 1: a class without samples
    return [
        ConfusionRow(name, [ConfusionCell(int(n), float(s)) for n, s in zip(*row, strict=True)])
        for name, row in zip(classes, zip(counts, shares, strict=True), strict=True)
    ]


def tiles(dataset: Dataset, rows: list[int], captions: list[str]) -> list[Tile]:
    """Return a tile for each of `rows` (positions in the index), titled with its uri."""
    uris = dataset.index.column("uri").take(pa.array(rows, pa.int64())).to_pylist()
    return [
        Tile(data_uri(thumbnail(image), "jpeg"), uri, caption)
        for image, uri, caption in zip(dataset.read(rows), uris, captions, strict=True)
    ]


def mistake_tiles(dataset: Dataset, run: EvaluatedRun) -> list[Tile]:
    """Return the wrong test predictions with the highest scores."""
    is_wrong = pc.not_equal(run.test.column("label"), run.test.column("predicted"))
    wrong = run.test.filter(is_wrong).sort_by([("score", "descending")]).slice(0, _MISTAKES)
    captions = [
        f"{row['label']} predicted as {row['predicted']}, score {row['score']:.0%}"
        for row in wrong.to_pylist()
    ]
    return tiles(dataset, wrong.column("row").to_pylist(), captions)
