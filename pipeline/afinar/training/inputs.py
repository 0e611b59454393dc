"""Inputs of the trained module: pixels with augmentation, or features that are computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from afinar.config.augmentation import Augmentation
from afinar.dataset.reader import Dataset
from afinar.errors import RequestError
from afinar.models.networks.network import Network, apply_input_view, default_batch_size
from afinar.models.networks.precision import autocast
from afinar.models.networks.stages import batch_statistics
from afinar.pictures.preprocessing import InputView
from afinar.training.augment import erase, geometric, needs_geometric, photometric
from afinar.training.distributed import Group
from afinar.training.loading import load_batches
from afinar.training.rng import repeat_keys, sample_keys, uniform
from afinar.training.sampler import RowNumbers, rank_slice
from afinar.training.timing import EpochTimer

_BELOW_ONE: Final = np.float32(1 - 2**-24)  # the largest float32 below 1: a cast may round to 1


class Inputs(Protocol):
    """Source of the module's inputs: threads call `load`, the main thread `to_device`."""

    reads_shards: bool
    """True if `load` reads the dataset's shards."""

    def load(self, rows: RowNumbers) -> Tensor:
        """Load what is stored for dataset rows into host memory."""
        ...

    def to_device(
        self,
        loaded: Tensor,
        rows: RowNumbers,
        epoch: int | None,
        timer: EpochTimer,
        repeats: RowNumbers | None = None,
    ) -> Tensor:
        """Return the module's input on the device.

        `epoch` seeds augmentation; None disables it. `repeats` int64 [n] counts how often the epoch
        has used each row before; None if it uses every row once.
        """
        ...


class PixelInputs:
    """Pixels from memory-mapped shards, augmented, resized and normalised on the device."""

    reads_shards = True

    def __init__(
        self,
        dataset: Dataset,
        view: InputView,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
    ) -> None:
        self._dataset, self._view, self._device = dataset, view, device
        self._augmentation, self._seed = augmentation, seed
        self.keys = sample_keys(dataset.index.column("sample_id"))

    def shard_numbers(self, rows: RowNumbers) -> RowNumbers:
        """Return the number of the shard of each row."""
        return self._dataset.shard_numbers[rows]

    def load(self, rows: RowNumbers) -> Tensor:
        """Return uint8 [n, s, s, 3]; pinned for a GPU, so that the copy is asynchronous."""
        images = torch.from_numpy(self._dataset.read(rows))
        return images.pin_memory() if self._device.type == "cuda" else images

    def to_device(
        self,
        loaded: Tensor,
        rows: RowNumbers,
        epoch: int | None,
        timer: EpochTimer,
        repeats: RowNumbers | None = None,
    ) -> Tensor:
        """Return float32 [n, 3, input_size, input_size]."""
        augmentation, side = self._augmentation, self._view.input_size
        with timer.measure("copy"):
            images = loaded.to(self._device, non_blocking=True)
        if epoch is None or not augmentation.any:
            with timer.measure("prepare"):
                return apply_input_view(images, self._view)

        keys = self.keys[rows] if repeats is None else repeat_keys(self.keys[rows], repeats)

        def rng(name: str) -> Tensor:
            drawn = uniform(keys, self._seed, epoch, name).astype(np.float32)
            return torch.from_numpy(np.minimum(drawn, _BELOW_ONE))

        with timer.measure("augment"):
            images = photometric(images, augmentation, rng)
        with timer.measure("prepare"):
            inputs = apply_input_view(images, self._augmented_view(images.shape[1]))
        with timer.measure("augment"):
            if needs_geometric(augmentation):
                inputs = geometric(inputs, augmentation, rng, side)
            if augmentation.erase:
                inputs = erase(inputs, augmentation, rng)
        return inputs

    def _augmented_view(self, stored_size: int) -> InputView:
        """Return the view from which pictures are resampled.

        A crop is read from the stored pixels, so that it is not blurred by two resizes. They are
        first reduced to twice the input at most, which is as far as bilinear sampling uses all
        pixels.
        """
        if not self._augmentation.crop:
            return self._view
        return replace(self._view, input_size=min(stored_size, 2 * self._view.input_size))


class AugmentedView:
    """Pixels as one epoch augments them, whatever the epoch in which they are asked for."""

    reads_shards = True

    def __init__(self, pixels: PixelInputs, epoch: int) -> None:
        self._pixels, self._epoch = pixels, epoch

    def load(self, rows: RowNumbers) -> Tensor:
        """Return uint8 [n, s, s, 3]."""
        return self._pixels.load(rows)

    def to_device(
        self,
        loaded: Tensor,
        rows: RowNumbers,
        epoch: int | None,
        timer: EpochTimer,
        repeats: RowNumbers | None = None,
    ) -> Tensor:
        """Return float32 [n, 3, input_size, input_size]; `epoch` is not used."""
        return self._pixels.to_device(loaded, rows, self._epoch, timer, repeats)


class FeatureInputs:
    """Activations of a frozen backbone at its cut, computed once and kept on the device.

    With augmented views of the first rows, epoch e uses view e modulo their number.
    """

    reads_shards = False

    def __init__(self, features: Tensor, rows: RowNumbers, views: Sequence[Tensor] = ()) -> None:
        """`features` float32 [n, width] belong to dataset `rows` int64 [n].

        Each of `views` float32 [m, width] belongs to the first m rows.
        """
        self._features, self.views = features, tuple(views)
        self._position = np.full(int(rows.max()) + 1, -1)
        self._position[rows] = np.arange(len(rows))

    def load(self, rows: RowNumbers) -> Tensor:
        """Return int64 [n]: positions in the table of features."""
        return torch.from_numpy(self._position[rows])

    def to_device(
        self,
        loaded: Tensor,
        rows: RowNumbers,
        epoch: int | None,
        timer: EpochTimer,
        repeats: RowNumbers | None = None,
    ) -> Tensor:
        """Return float32 [n, width]."""
        table = self._features
        if epoch is not None and self.views:
            table = self.views[epoch % len(self.views)]
        return table[loaded.to(table.device)]


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """Computes the features of dataset rows with the network up to its head, on all workers.

    The network computes in `precision`; `threads` load pictures ahead.
    """

    network: Network
    pixels: PixelInputs | AugmentedView
    group: Group
    precision: torch.dtype
    threads: int

    def compute(self, rows: RowNumbers, timer: EpochTimer | None = None) -> Tensor:
        """Return the features of rows, float32 [n, width], on every worker.

        Each worker computes its slice of `rows`; the sum over workers fills in the others. The
        network is in eval mode. There must be at least one row per worker. Raises RequestError on
        all workers if float16 is too narrow.
        """
        self.network.eval()
        local, size = self._slice(rows), default_batch_size(self.group.device)
        batches = [local[start : start + size] for start in range(0, len(local), size)]
        return self._compute(rows, batches, timer or EpochTimer(self.group.device))

    def compute_in_batches(self, rows: RowNumbers, batch_size: int) -> Tensor:
        """Return features as training has them: BatchNorm normalises by batches of the rows.

        A batch has `batch_size` of a worker's rows or more: a small last one would distort its
        statistics, so its rows are divided among the others.
        """
        local = self._slice(rows)
        batches = np.array_split(local, max(1, len(local) // batch_size))
        with batch_statistics(self.network):
            return self._compute(rows, batches, EpochTimer(self.group.device))

    def _slice(self, rows: RowNumbers) -> RowNumbers:
        """Return the positions of this worker's share of the rows."""
        return rank_slice(np.arange(len(rows)), self.group.rank, self.group.size)

    def _compute(self, rows: RowNumbers, batches: list[RowNumbers], timer: EpochTimer) -> Tensor:
        group, pixels, features = self.group, self.pixels, None
        loading = load_batches(
            lambda positions: pixels.load(rows[positions]), batches, self.threads
        )
        with contextlib.closing(loading), torch.inference_mode():
            for positions, loaded in loading:
                images = pixels.to_device(loaded, rows[positions], None, timer)
                with timer.measure("compute"), autocast(group.device, self.precision):
                    values = self.network.features(images).float()
                if features is None:
                    features = torch.zeros(len(rows), values.shape[1], device=group.device)
                features[torch.from_numpy(positions).to(group.device)] = values

        assert features is not None, "there is at least one row per worker"
        features = group.all_reduce_sum(features)
        if self.precision == torch.float16 and not features.isfinite().all():
            raise RequestError(
                "activations of this backbone exceed float16, whose largest number is 65,504: give "
                "--precision float32"
            )
        return features
