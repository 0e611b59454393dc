"""Where the batches of a training come from: pixels through augmentation, or features computed once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Augmentation
from pipeline.dataset.reading import Dataset
from pipeline.models.network import Network, forward_batch, prepare
from pipeline.pictures.contract import InputView
from pipeline.training.group import Group
from pipeline.training.order import coin, share

Rows = NDArray[np.int64]


class Inputs(Protocol):
    """Batches of whatever the trained module takes."""

    def batch(self, rows: Rows, epoch: int | None) -> Tensor:
        """Inputs of dataset rows; augmented for `epoch`, as they are for None."""
        ...


class PixelInputs:
    """Pixels from memory-mapped shards, flipped per sample, in the network's input view."""

    def __init__(
        self, dataset: Dataset, view: InputView, augment: Augmentation, seed: int, device: torch.device
    ) -> None:
        self._dataset, self._view, self._device = dataset, view, device
        self._augment, self._seed = augment, seed
        self._ids = dataset.index.column("sample_id").to_numpy(zero_copy_only=False)

    def batch(self, rows: Rows, epoch: int | None) -> Tensor:
        """float32 [n, 3, input_size, input_size]."""
        images = torch.from_numpy(self._dataset.read(rows)).to(self._device)
        if epoch is not None and self._augment.flip:
            heads = torch.from_numpy(coin(self._seed, epoch, list(self._ids[rows]), "flip")).to(self._device)
            images = torch.where(heads[:, None, None, None], images.flip(2), images)
        return prepare(images, self._view)


class FeatureInputs:
    """Pooled activations of the frozen backbone: one forward pass per sample, then memory."""

    def __init__(self, network: Network, pixels: PixelInputs, rows: Rows, group: Group) -> None:
        """Each worker computes its share of `rows`; the shares are then exchanged."""
        network.eval()
        self._position = {int(row): position for position, row in enumerate(rows)}
        table: Tensor | None = None
        mine = share(np.arange(len(rows)), group.rank, group.size)
        for part in np.array_split(mine, max(1, -(-len(mine) // forward_batch(group.device)))):
            with torch.inference_mode():
                features = network.features(pixels.batch(rows[part], None))
            if table is None:
                table = torch.zeros(len(rows), features.shape[1], device=group.device)
            table[torch.from_numpy(part).to(group.device)] = features
        assert table is not None, "fewer samples than workers are refused before training starts"
        self._table = group.sum(table)

    def batch(self, rows: Rows, epoch: int | None) -> Tensor:
        """float32 [n, channels]."""
        return self._table[[self._position[int(row)] for row in rows]]
