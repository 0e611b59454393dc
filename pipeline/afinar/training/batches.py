"""Samples of a split, and the loading of their global batches, each worker its slice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afinar.training.distributed import Group
from afinar.training.inputs import Inputs
from afinar.training.loading import load_batches
from afinar.training.sampler import RowNumbers, rank_slice
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
    """A global batch. Positions count within the samples of the split.

    `positions` are those of the whole batch, `local` those of this worker's slice, and `loaded` is
    what `Inputs.load` returned for the slice.
    """

    positions: RowNumbers
    local: RowNumbers
    loaded: Tensor


@dataclass(frozen=True)
class BatchLoader:
    """Loads this worker's slices of batches with `threads` threads."""

    inputs: Inputs
    samples: Samples
    group: Group
    threads: int

    def load(
        self,
        batches: Sequence[RowNumbers],
        first: int,
        timer: EpochTimer,
        on_batch: Callable[[int], None],
    ) -> Generator[Batch, None, None]:
        """Yield the global `batches` of an epoch from number `first` on.

        `on_batch` is called with the number of a batch before it is loaded. The wait for a loaded
        batch is measured as `data_wait`.
        """
        slices = [rank_slice(batch, self.group.rank, self.group.size) for batch in batches]

        def load(number: int) -> Tensor:
            on_batch(number)
            return self.inputs.load(self.samples.rows[slices[number]])

        numbers = range(first, len(batches))
        with contextlib.closing(load_batches(load, numbers, self.threads)) as loading:
            for number in numbers:
                with timer.measure("data_wait"):
                    _, loaded = next(loading)
                timer.batch_arrived()
                yield Batch(batches[number], slices[number], loaded)
