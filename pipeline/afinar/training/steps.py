"""One step of training: forward and backward pass of a global batch, each worker on its slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """Trains `model` on one batch. `model` is the module as `Group.wrap` returned it."""

    model: nn.Module
    inputs: Inputs
    samples: Samples
    optimizer: Optimizer
    loss: Loss
    group: Group
    seed: int
    precision: torch.dtype

    def __call__(self, batch: Batch, *, epoch: int, step: int, timer: EpochTimer) -> Tensor:
        """Update the weights. Return loss and correct predictions of the slice, float64 [2]."""
        torch.manual_seed(step_seed(self.seed, step, self.group.rank))
        rows = self.samples.rows[batch.local]
        inputs = self.inputs.to_device(batch.loaded, rows, epoch, timer)

        with timer.measure("compute"):
            targets = self.samples.targets_on(self.group.device, batch.local)
            with autocast(self.group.device, self.precision):
                logits = self.model(inputs)
            loss = self.loss(logits.float(), targets)

            # The gradient must be that of the mean over the global batch. DDP divides the sum of
            # the workers' gradients by their number; this factor multiplies by it again. With
            # slices of 5 and 4 samples on 2 workers: (loss_0 * 2/9 + loss_1 * 2/9) / 2 = (loss_0 +
            # loss_1) / 9.
            factor = self.group.size / self.loss.weight(self.samples, batch.positions)
            self.optimizer.step(loss * factor, step)

            correct = (logits.argmax(dim=1) == targets).sum()
            return torch.stack([loss.detach().double(), correct.double()])


def autocast(device: torch.device, precision: torch.dtype) -> Any:
    """Return a mixed-precision context; it does nothing for float32."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)
