"""Gallery of a dataset's classes, from few shards, so that its cost does not grow with the data."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.evaluation.comparison import EvaluatedRun
from afinar.report.pieces import PICTURES, THUMBNAIL_PX, Tile, tiles

_PER_CLASS: Final = 8
_LEAST_CERTAIN: Final = 2

# A shard is verified when it is opened, about 1 GB/s, and a remote one is fetched before.
_LOCAL_BYTES: Final = 2**30
_REMOTE_BYTES: Final = 2**27


@dataclass(frozen=True)
class ClassTiles:
    """Pictures of one class; `samples` is the number of all that have its label."""

    target: str
    name: str
    samples: int
    tiles: list[Tile]


@dataclass(frozen=True)
class ClassGallery:
    """Pictures of the classes; `left_out` counts the classes that have none on the page."""

    classes: list[ClassTiles]
    left_out: int

    @property
    def targets(self) -> dict[str, str]:
        """Anchors by class."""
        return {entry.name: entry.target for entry in self.classes}

    @property
    def shown(self) -> int:
        return sum(len(entry.tiles) for entry in self.classes)


def class_gallery(
    dataset: Dataset, run: EvaluatedRun | None = None, *, size_px: int = THUMBNAIL_PX
) -> ClassGallery:
    """Return pictures of each class, at most `PICTURES`; of many classes the first ones.

    Pictures are taken in the order of their content hash, which is as good as random. With a run,
    each class ends with the test pictures that are predicted right with the lowest scores.
    """
    classes = dataset.classes[:PICTURES]
    per_class = max(1, min(_PER_CLASS, PICTURES // max(len(classes), 1)))
    certain = _least_certain(run, classes, min(_LEAST_CERTAIN, per_class - 1)) if run else {}
    chosen = _choose(dataset, classes, per_class - (_LEAST_CERTAIN if certain else 0))

    rows, captions, alts, sizes = [], [], [], []
    splits = dataset.index.column("split")
    for name in classes:
        of_class = [(row, splits[row].as_py() or "in no split") for row in chosen[name]]
        of_class += certain.get(name, [])
        rows += [row for row, _ in of_class]
        captions += [caption for _, caption in of_class]
        alts += [f"{name}, {caption}" for _, caption in of_class]
        sizes.append(len(of_class))

    pictures = iter(tiles(dataset, rows, captions, size_px, alts=alts))
    numbers = {name: number for number, name in enumerate(dataset.classes)}
    counts = dataset.manifest.counts["labels"]
    return ClassGallery(
        [
            ClassTiles(
                f"class-{numbers[name]}",
                name,
                counts.get(name, 0),
                [next(pictures) for _ in range(size)],
            )
            for name, size in zip(classes, sizes, strict=True)
            if size
        ],
        len(dataset.classes) - sum(size > 0 for size in sizes),
    )


def sampled_shards(dataset: Dataset) -> NDArray[np.int64]:
    """Return the numbers of shards, evenly spaced, that may be read for a page."""
    sizes = [ref.bytes for ref in dataset.shards]
    if not sizes:
        return np.empty(0, np.int64)
    limit = _REMOTE_BYTES if dataset.is_remote else _LOCAL_BYTES
    affordable = max(1, int(limit // (sum(sizes) / len(sizes))))
    count = min(len(sizes), affordable)
    return np.unique(np.linspace(0, len(sizes) - 1, count).round().astype(np.int64))


def sampled_rows(dataset: Dataset) -> NDArray[np.int64]:
    """Return positions in the index of the rows in `sampled_shards`, by content hash."""
    is_sampled = np.isin(dataset.shard_numbers, sampled_shards(dataset))
    rows = np.flatnonzero(is_sampled)
    ids = dataset.index.column("sample_id").take(pa.array(rows))
    order: NDArray[np.int64] = rows[pc.sort_indices(ids).to_numpy()]
    return order


def _choose(dataset: Dataset, classes: list[str], per_class: int) -> dict[str, list[int]]:
    """Return positions in the index for each class, at most `per_class`."""
    chosen: dict[str, list[int]] = defaultdict(list)
    rows = sampled_rows(dataset)
    labels = dataset.index.column("label").take(pa.array(rows))
    codes = pc.index_in(labels, pa.array(classes, labels.type)).fill_null(-1).to_numpy()
    for number, name in enumerate(classes):
        chosen[name] = rows[np.flatnonzero(codes == number)[:per_class]].tolist()
    return chosen


def _least_certain(
    run: EvaluatedRun, classes: list[str], count: int
) -> dict[str, list[tuple[int, str]]]:
    """Return rows and captions of right test predictions with the lowest scores."""
    is_right = pc.equal(run.test.column("label"), run.test.column("predicted"))
    right = run.test.filter(is_right).sort_by([("score", "ascending")])
    wanted = set(classes)
    chosen: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row, label, score in zip(
        *(right.column(name).to_pylist() for name in ("row", "label", "score")), strict=True
    ):
        if label in wanted and len(chosen[label]) < count:
            chosen[label].append((row, f"test, right with {score:.0%}"))
    return chosen
