"""A dataset in Python: samples, NumPy arrays, a torch dataset, a Ray dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.dataset import reader
from afinar.errors import RequestError
from afinar.sources.entry import SPLITS
from afinar.storage.cache import DEFAULT_BYTES, Cache

if TYPE_CHECKING:
    from PIL.Image import Image

    from afinar.api.torch_dataset import TorchDataset
    from afinar.execution.ray_dataset import RayDataset

Split = Literal["train", "validation", "test"]

_BLOCK: Final = 64  # samples that an iteration reads at a time
_TILE_PX: Final = 96


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of a dataset.

    `image` is uint8 [size, size, 3], RGB. `label` is None for a picture without a label, `split` is
    None for one that is held out (a duplicate, or a picture with two labels).
    """

    image: NDArray[np.uint8]
    label: str | None
    split: str | None
    uri: str
    sample_id: str

    def __repr__(self) -> str:
        height, width, _ = self.image.shape
        return f"Sample({self.label}, {self.split}, {width}x{height} px, {self.uri})"

    def _repr_png_(self) -> bytes:
        from PIL import Image

        sink = BytesIO()
        Image.fromarray(self.image).save(sink, "PNG")
        return sink.getvalue()


class Arrays(NamedTuple):
    """Pictures uint8 [n, size, size, 3] and labels int64 [n], which are positions in `classes`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Dataset(reader.Dataset):
    """One version of a dataset: `open_dataset` returns it.

    It is a sequence of `Sample`, sorted by uri. `index` is the same as an Arrow table (uri, etag,
    sample_id, label, split, group, shard, row), `rejects` lists the pictures that could not be
    used, `classes` the names of the classes, and `read(rows)` returns pixels. For a DataLoader of
    torch, use `torch(split)`.
    """

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> Sample:
        """Return one sample; a negative position counts from the end."""
        if not -len(self) <= position < len(self):
            raise IndexError(f"position {position} in a dataset of {len(self)} pictures")
        (sample,) = self._samples(position % len(self), 1)
        return sample

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _BLOCK):
            yield from self._samples(start, _BLOCK)

    def _samples(self, start: int, count: int) -> list[Sample]:
        columns = ["label", "split", "uri", "sample_id"]
        rows = self.index.select(columns).slice(start, count).to_pylist()
        images = self.read(range(start, start + len(rows)))
        return [Sample(image=image, **row) for image, row in zip(images, rows, strict=True)]

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Position in `classes` of each sample's label, int64 [n]; -1 for one without a label."""
        labels = self.index.column("label")
        numbers = pc.index_in(labels, pa.array(self.classes, labels.type))
        result: NDArray[np.int64] = pc.fill_null(numbers, -1).to_numpy().astype(np.int64)
        return result

    def rows(self, split: Split | None = None) -> NDArray[np.int64]:
        """Return the positions of the labelled samples of a split; of all splits by default."""
        if split is not None and split not in SPLITS:
            raise RequestError(f"{split!r} is no split: give one of {', '.join(SPLITS)}")
        wanted = pa.array([split] if split else SPLITS, pa.string())
        in_split = pc.is_in(self.index.column("split"), wanted).to_numpy(zero_copy_only=False)
        return np.flatnonzero(in_split & (self.targets >= 0))

    def numpy(self, split: Split | None = None) -> Arrays:
        """Return the labelled pictures of a split and their labels, all in memory.

        Example: `images, labels = dataset.numpy("train")`.
        """
        rows = self.rows(split)
        return Arrays(self.read(rows), self.targets[rows])

    def torch(
        self, split: Split | None = None, transform: Callable[[Any], Any] | None = None
    ) -> TorchDataset:
        """Return the labelled pictures of a split as a torch dataset, for a DataLoader.

        A sample is (image, label): a uint8 tensor [3, size, size], after `transform` if one is
        given, and the position of its label in `classes`. Worker processes may read it.
        """
        from afinar.api.torch_dataset import TorchDataset

        return TorchDataset(self, self.rows(split), transform)

    def ray(self, split: Split | None = None) -> RayDataset:
        """Return the labelled pictures of a split as a dataset of Ray Data.

        Its columns are image (uint8 [size, size, 3]), label (text), split, uri and sample_id.
        Ray's workers read the shards, so they need afinar and access to the dataset's location.
        """
        from afinar.execution.ray_dataset import read_rows

        return read_rows(self, self.rows(split))

    def show(self, count: int = 12, split: Split | None = None, seed: int = 0) -> Image:
        """Return a sheet of `count` pictures that are drawn at random, with their labels below."""
        from PIL import Image, ImageDraw

        rows = self.rows(split)
        rows = np.random.default_rng(seed).permutation(rows)[:count]
        columns = min(6, max(1, len(rows)))
        height = _TILE_PX + 16
        size = (columns * _TILE_PX, -(-len(rows) // columns) * height)
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        for number, (image, target) in enumerate(
            zip(self.read(rows), self.targets[rows], strict=True)
        ):
            left, top = number % columns * _TILE_PX, number // columns * height
            sheet.paste(Image.fromarray(image).resize((_TILE_PX, _TILE_PX)), (left, top))
            draw.text((left + 2, top + _TILE_PX + 2), self.classes[target][:16], fill="black")
        return sheet

    def __repr__(self) -> str:
        counts = self.manifest.counts
        splits = ", ".join(f"{name} {count}" for name, count in counts["splits"].items())
        return (
            f"Dataset({self.store.root!r}, version {self.manifest.version}): "
            f"{counts['samples']} pictures of {self.view.size}x{self.view.size} px, "
            f"{len(self.classes)} classes ({splits}), {counts['rejects']} rejects"
        )

    def _repr_html_(self) -> str:
        pairs = Counter(zip(self._values("label"), self._values("split"), strict=True))
        head = "".join(f"<th>{name}</th>" for name in ("class", *SPLITS))
        body = "".join(
            f"<tr><td>{escape(name)}</td>"
            + "".join(f"<td>{pairs[name, split]}</td>" for split in SPLITS)
            + "</tr>"
            for name in self.classes
        )
        return f"<p>{escape(repr(self))}</p><table><tr>{head}</tr>{body}</table>"

    def _values(self, column: str) -> list[str | None]:
        values: list[str | None] = self.index.column(column).to_pylist()
        return values


def open_dataset(
    uri: str | Path,
    *,
    version: int | None = None,
    cache: Path | None = None,
    cache_bytes: int = DEFAULT_BYTES,
) -> Dataset:
    """Open a version of the dataset at `uri`, by default the current one.

    `uri` is a folder or s3://BUCKET/PREFIX. Remote shards are kept in the folder `cache` (by
    default a folder of the user's in the temporary folder), up to `cache_bytes`. Raises
    RequestError if there is no dataset.
    """
    opened = reader.open_dataset(str(uri), version=version)
    return Dataset(opened.store, opened.manifest, Cache(cache, cache_bytes))
