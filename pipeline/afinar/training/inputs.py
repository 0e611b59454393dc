"""Where the inputs of a training come from: pixels through augmentation, or features computed once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from afinar.config.augmentation import Augmentation
from afinar.dataset.reader import Dataset
from afinar.models.networks.network import Network, forward_batch, prepare
from afinar.pictures.preprocessing import InputView
from afinar.training.augment import move, moves, photometric
from afinar.training.distributed import Group
from afinar.training.rng import sample_keys, uniform
from afinar.training.sampler import Rows, share
from afinar.training.timing import EpochTimer


class Inputs(Protocol):
    """What the trained module takes, in two parts: what a reader may do ahead, and what the device does."""

    def gather(self, rows: Rows) -> Tensor:
        """Collect what belongs to dataset rows, in host memory."""
        ...

    def finish(self, gathered: Tensor, rows: Rows, epoch: int | None, ledger: EpochTimer) -> Tensor:
        """The module's input on its device; augmented for `epoch`, as it is for None."""
        ...


class PixelInputs:
    """Pixels from memory-mapped shards, augmented per sample, in the network's input view."""

    def __init__(
        self,
        dataset: Dataset,
        view: InputView,
        augment: Augmentation,
        seed: int,
        device: torch.device,
    ) -> None:
        self._dataset, self._view, self._device = dataset, view, device
        self._augment, self._seed = augment, seed
        self._keys = sample_keys(dataset.index.column("sample_id"))

    def gather(self, rows: Rows) -> Tensor:
        """uint8 [n, s, s, 3]; pinned where a GPU is to fetch it."""
        images = torch.from_numpy(self._dataset.read(rows))
        return images.pin_memory() if self._device.type == "cuda" else images

    def finish(self, gathered: Tensor, rows: Rows, epoch: int | None, ledger: EpochTimer) -> Tensor:
        """float32 [n, 3, input_size, input_size]."""
        with ledger.measure("copy"):
            images = gathered.to(self._device, non_blocking=True)
        if epoch is None or not self._augment.any:
            with ledger.measure("prepare"):
                return prepare(images, self._view)

        def draw(what: str) -> Tensor:
            drawn = uniform(self._keys[rows], self._seed, epoch, what)
            return torch.from_numpy(drawn.astype(np.float32)).to(self._device, non_blocking=True)

        with ledger.measure("augment"):
            images = photometric(images, self._augment, draw)
        with ledger.measure("prepare"):
            inputs = prepare(images, self._view)
        if not moves(self._augment):
            return inputs
        with ledger.measure("augment"):
            return move(inputs, self._augment, draw)


class FeatureInputs:
    """Activations of the frozen backbone at its cut: one forward pass per sample, then memory."""

    def __init__(self, network: Network, pixels: PixelInputs, rows: Rows, group: Group) -> None:
        """Each worker computes its share of `rows`; the shares are then exchanged."""
        network.eval()
        self._place = np.full(int(rows.max()) + 1, -1)
        self._place[rows] = np.arange(len(rows))
        table: Tensor | None = None
        mine = share(np.arange(len(rows)), group.rank, group.size)
        unmeasured = EpochTimer(group.device)
        for part in np.array_split(mine, max(1, -(-len(mine) // forward_batch(group.device)))):
            with torch.inference_mode():
                images = pixels.finish(pixels.gather(rows[part]), rows[part], None, unmeasured)
                features = network.features(images)
            if table is None:
                table = torch.zeros(len(rows), features.shape[1], device=group.device)
            table[torch.from_numpy(part).to(group.device)] = features
        assert table is not None, "fewer samples than workers are refused before training starts"
        self._table = group.sum(table)

    def gather(self, rows: Rows) -> Tensor:
        """int64 [n]: places in the table of features."""
        return torch.from_numpy(self._place[rows])

    def finish(self, gathered: Tensor, rows: Rows, epoch: int | None, ledger: EpochTimer) -> Tensor:
        """float32 [n, features]."""
        return self._table[gathered.to(self._table.device)]
