"""Samples of a dataset as a torch dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data

from afinar.dataset import reader

Item = tuple[Any, int]
"""An image, which is a uint8 tensor [3, size, size] or what `transform` made of it; a label."""


class TorchDataset(data.Dataset[Item]):
    """Samples of a dataset for torch: `Dataset.torch` returns it.

    `classes` are the names of the labels. Worker processes of a DataLoader open the dataset anew,
    at the same version.
    """

    def __init__(
        self,
        dataset: reader.Dataset,
        rows: NDArray[np.int64],
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        labels = dataset.index.column("label").take(rows).to_pylist()
        numbers = {name: number for number, name in enumerate(dataset.classes)}
        self.classes = dataset.classes
        self.targets = [numbers[label] for label in labels]
        self.transform = transform
        self._rows = rows
        self._place = (dataset.store.root, dataset.manifest.version)
        self._dataset: reader.Dataset | None = dataset

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Item:
        (item,) = self.__getitems__([position])
        return item

    def __getitems__(self, positions: Sequence[int]) -> list[Item]:
        """Return several samples. The pixels of a batch are gathered from each shard together."""
        if self._dataset is None:
            root, version = self._place
            self._dataset = reader.open_dataset(root, version=version)
        images = torch.from_numpy(self._dataset.read(self._rows[list(positions)]))
        transform = self.transform or (lambda image: image)
        return [
            (transform(image), self.targets[position])
            for image, position in zip(images.permute(0, 3, 1, 2), positions, strict=True)
        ]

    def __getstate__(self) -> dict[str, Any]:
        # Mapped shards and locks stay in this process.
        return {**self.__dict__, "_dataset": None}

    def __repr__(self) -> str:
        return f"TorchDataset({self._place[0]!r}): {len(self)} pictures in {self.classes}"
