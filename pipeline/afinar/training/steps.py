"""One step of training: forward and backward pass of a global batch, each worker on its slice."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from afinar.models.networks.precision import autocast
from afinar.training.batches import Batch, Samples
from afinar.training.distributed import Group
from afinar.training.inputs import Inputs
from afinar.training.optim import Optimizer
from afinar.training.rng import step_seed
from afinar.training.sampler import RowNumbers
from afinar.training.timing import EpochTimer


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv 1512.00567) and class weights.

    `class_weights` float32 [classes] lies on the device.
    """

    smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over samples."""
        return F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.smoothing,
        )

    def weight(self, samples: Samples, positions: RowNumbers) -> Tensor | int:
        """Return the divisor that makes the sum a mean: a count, or a sum of class weights."""
        if self.class_weights is None:
            return len(positions)
        return self.class_weights[samples.targets_on(self.class_weights.device, positions)].sum()


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """Trains `model` on one batch. `model` is the module as `Group.wrap` returned it.

    `accumulate` is the number of parts in which the slice is computed.
    """

    model: nn.Module
    inputs: Inputs
    samples: Samples
    optimizer: Optimizer
    loss: Loss
    group: Group
    seed: int
    precision: torch.dtype
    accumulate: int = 1

    def __call__(self, batch: Batch, *, epoch: int, step: int, timer: EpochTimer) -> Tensor:
        """Update the weights. Return loss and correct predictions of the slice, float64 [2]."""
        torch.manual_seed(step_seed(self.seed, step, self.group.rank))
        # The gradient must be that of the mean over the global batch. DDP divides the sum of the
        # workers' gradients by their number; this factor multiplies by it again. With slices of 5
        # and 4 samples on 2 workers: (loss_0 * 2/9 + loss_1 * 2/9) / 2 = (loss_0 + loss_1) / 9.
        factor = self.group.size / self.loss.weight(self.samples, batch.positions)

        self.optimizer.zero_grad()
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        parts = np.array_split(np.arange(len(batch.local)), self.accumulate)
        for number, part in enumerate(parts, 1):
            # DDP adds up the workers' gradients once, with the last part.
            is_last = number == len(parts)
            with contextlib.nullcontext() if is_last else self._no_sync():
                sums += self._add_gradients(batch, part, factor, epoch, timer)
        with timer.measure("compute"):
            self.optimizer.step(step)
        return sums

    def _add_gradients(
        self, batch: Batch, part: RowNumbers, factor: Tensor | float, epoch: int, timer: EpochTimer
    ) -> Tensor:
        """Add the gradients of a part of the slice. Return its loss and correct predictions."""
        positions = batch.local[part]
        rows = self.samples.rows[positions]
        inputs = self.inputs.to_device(batch.loaded[part], rows, epoch, timer)

        with timer.measure("compute"):
            targets = self.samples.targets_on(self.group.device, positions)
            with autocast(self.group.device, self.precision):
                logits = self.model(inputs)
            loss = self.loss(logits.float(), targets)
            (loss * factor).backward()  # type: ignore[no-untyped-call]
            correct = (logits.argmax(dim=1) == targets).sum()
            return torch.stack([loss.detach().double(), correct.double()])

    def _no_sync(self) -> AbstractContextManager[None]:
        model = self.model
        if isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()
