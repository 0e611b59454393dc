"""Samples of a split, and the loading of their global batches, each worker its slice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from afinar.training.distributed import Group
from afinar.training.inputs import Inputs
from afinar.training.loading import load_batches
from afinar.training.mixing import with_partners
from afinar.training.sampler import GlobalBatch, RowNumbers, rank_slice
from afinar.training.timing import EpochTimer


@dataclass(frozen=True)
class Samples:
    """Samples of one split: dataset rows and class numbers, both int64 [n]."""

    rows: RowNumbers
    targets: RowNumbers

    def __len__(self) -> int:
        return len(self.rows)

    def targets_on(self, device: torch.device, positions: RowNumbers) -> Tensor:
        """Return the class numbers of the samples at `positions`, int64 [m]."""
        return torch.from_numpy(self.targets[positions]).to(device, non_blocking=True)


@dataclass(frozen=True)
class Batch:
    """A global batch as one worker holds it.

    `numbers` int64 [m] are the numbers within the batch of the samples that this worker computes,
    and `held` those of the samples that it has loaded, in ascending order: the same, or also the
    partners that they are mixed with. `loaded` is what `Inputs.load` returned for the held ones.
    """

    whole: GlobalBatch
    numbers: RowNumbers
    held: RowNumbers
    loaded: Tensor

    @property
    def local(self) -> RowNumbers:
        """Positions in the split of the samples that this worker computes."""
        return self.whole.positions[self.numbers]

    def loaded_of(self, numbers: RowNumbers) -> Tensor:
        """Return what is loaded for the samples with these numbers, all of which are held."""
        if len(numbers) == len(self.held):
            return self.loaded  # without a copy, which would not be pinned
        return self.loaded[torch.from_numpy(np.searchsorted(self.held, numbers))]


@dataclass(frozen=True)
class BatchLoader:
    """Loads this worker's slices of batches with `threads` threads.

    With `partners` it also loads the pictures that those of the slice are mixed with.
    """

    inputs: Inputs
    samples: Samples
    group: Group
    threads: int
    partners: bool = False

    def load(
        self,
        batches: Sequence[GlobalBatch],
        first: int,
        timer: EpochTimer,
        on_batch: Callable[[int], None],
    ) -> Generator[Batch, None, None]:
        """Yield the global `batches` of an epoch from number `first` on.

        `on_batch` is called with the number of a batch before it is loaded. The wait for a loaded
        batch is measured as `data_wait`.
        """

        def load(number: int) -> Batch:
            on_batch(number)
            whole = batches[number]
            size = len(whole.positions)
            numbers = rank_slice(np.arange(size), self.group.rank, self.group.size)
            held = with_partners(numbers, size) if self.partners else numbers
            loaded = self.inputs.load(self.samples.rows[whole.positions[held]])
            return Batch(whole, numbers, held, loaded)

        numbers = range(first, len(batches))
        with contextlib.closing(load_batches(load, numbers, self.threads)) as loading:
            for _ in numbers:
                with timer.measure("data_wait"):
                    _, batch = next(loading)
                timer.batch_arrived()
                yield batch
