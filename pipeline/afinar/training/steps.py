"""One step of training: forward and backward pass of a global batch, each worker on its slice."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from afinar.config.train import ClassWeights
from afinar.models.networks.precision import autocast
from afinar.training.batches import Batch, Samples
from afinar.training.distributed import Group
from afinar.training.inputs import Inputs
from afinar.training.mixing import Mixes, Mixing, partners, with_partners
from afinar.training.optim import Optimizer
from afinar.training.rng import step_seed
from afinar.training.sampler import RowNumbers
from afinar.training.timing import EpochTimer

_MAX_WEIGHT_RATIO: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv 1512.00567) and class weights.

    `class_weights` float32 [classes] lies on the device.
    """

    smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over samples.

        `targets` are class numbers int64 [n], or probabilities float [n, classes] of mixed
        pictures. A probability of 1 gives the loss of its class number, also with smoothing and
        class weights.
        """
        return F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.smoothing,
        )

    def weight(
        self, samples: Samples, positions: RowNumbers, mixes: Mixes | None = None
    ) -> Tensor | int:
        """Return the divisor that makes the sum a mean: a count, or a sum of class weights.

        `positions` are those of a global batch. The weight of a mixed sample is the mean of the
        weights of its two classes, by their shares.
        """
        if self.class_weights is None:
            return len(positions)
        weights = self.class_weights[samples.targets_on(self.class_weights.device, positions)]
        if mixes is None:
            return weights.sum()
        shares = torch.from_numpy(mixes.shares).to(weights)
        # The next sample is the partner (mixing.partners).
        return (shares * weights + (1 - shares) * weights.roll(-1)).sum()


def class_weights(
    samples: Samples, classes: int, kind: ClassWeights, device: torch.device
) -> Tensor | None:
    """Return the weights of the classes in the loss, float32 [classes], or None for "none".

    "balanced" is samples / (classes * samples of the class), so that the sum over a class is the
    same for all classes. "sqrt" is its square root, "capped" is at most 10 times the smallest
    weight. The mean over samples is 1, so losses stay comparable.

    Example: of 1,000 and 10 samples the second weighs, relative to the first, 100 times as much
    balanced, 10 times with sqrt, and 10 times capped.
    """
    if kind == "none":
        return None
    counts = np.bincount(samples.targets, minlength=classes)
    weights = len(samples) / (classes * counts)
    if kind == "sqrt":
        weights = np.sqrt(weights)
    elif kind == "capped":
        weights = np.minimum(weights, _MAX_WEIGHT_RATIO * weights.min())
    if kind != "balanced":  # whose mean is 1 already
        weights *= len(samples) / (counts * weights).sum()
    return torch.from_numpy(weights.astype(np.float32)).to(device)


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """Trains `model` on one batch. `model` is the module as `Group.wrap` returned it.

    `accumulate` is the number of parts in which the slice is computed. `mixing` is None if pictures
    are not mixed.
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
    mixing: Mixing | None = None

    def __call__(self, batch: Batch, *, epoch: int, step: int, timer: EpochTimer) -> Tensor:
        """Update the weights. Return loss and correct predictions of the slice, float64 [2].

        A prediction for a mixed picture is correct if it is the class of the larger share.
        """
        torch.manual_seed(step_seed(self.seed, step, self.group.rank))
        mixes = self.mixing.draw(batch.whole, epoch) if self.mixing else None
        # The gradient must be that of the mean over the global batch. DDP divides the sum of the
        # workers' gradients by their number; this factor multiplies by it again. With slices of 5
        # and 4 samples on 2 workers: (loss_0 * 2/9 + loss_1 * 2/9) / 2 = (loss_0 + loss_1) / 9.
        factor = self.group.size / self.loss.weight(self.samples, batch.whole.positions, mixes)

        self.optimizer.zero_grad()
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        parts = np.array_split(batch.numbers, self.accumulate)
        for count, numbers in enumerate(parts, 1):
            # DDP adds up the workers' gradients once, with the last part.
            is_last = count == len(parts)
            with contextlib.nullcontext() if is_last else self._no_sync():
                sums += self._add_gradients(batch, numbers, mixes, factor, epoch, timer)
        with timer.measure("compute"):
            self.optimizer.step(step)
        return sums

    def _add_gradients(
        self,
        batch: Batch,
        numbers: RowNumbers,
        mixes: Mixes | None,
        factor: Tensor | float,
        epoch: int,
        timer: EpochTimer,
    ) -> Tensor:
        """Add the gradients of a part of the slice. Return its loss and correct predictions."""
        if mixes is None:
            inputs = self._inputs(batch, numbers, epoch, timer)
        else:
            inputs = self._mixed_inputs(batch, numbers, mixes, epoch, timer)

        with timer.measure("compute"):
            with autocast(self.group.device, self.precision):
                logits = self.model(inputs)
            targets = self._targets(batch, numbers)
            if mixes is not None:
                targets = self._mixed_targets(batch, numbers, mixes, logits.shape[1])
            loss = self.loss(logits.float(), targets)
            self.optimizer.scale(loss * factor).backward()  # type: ignore[no-untyped-call]
            classes = targets if targets.ndim == 1 else targets.argmax(dim=1)
            correct = (logits.argmax(dim=1) == classes).sum()
            return torch.stack([loss.detach().double(), correct.double()])

    def _inputs(self, batch: Batch, numbers: RowNumbers, epoch: int, timer: EpochTimer) -> Tensor:
        """Return the augmented inputs of samples that the worker holds, by number in the batch."""
        whole = batch.whole
        rows, repeats = self.samples.rows[whole.positions[numbers]], whole.repeats[numbers]
        return self.inputs.to_device(batch.loaded_of(numbers), rows, epoch, timer, repeats)

    def _mixed_inputs(
        self, batch: Batch, numbers: RowNumbers, mixes: Mixes, epoch: int, timer: EpochTimer
    ) -> Tensor:
        size = len(batch.whole.positions)
        needed = with_partners(numbers, size)
        inputs = self._inputs(batch, needed, epoch, timer)
        with timer.measure("augment"):
            own, other = (
                inputs[torch.from_numpy(np.searchsorted(needed, chosen)).to(inputs.device)]
                for chosen in (numbers, partners(numbers, size))
            )
            return mixes.take(numbers).blend(own, other)

    def _targets(self, batch: Batch, numbers: RowNumbers) -> Tensor:
        return self.samples.targets_on(self.group.device, batch.whole.positions[numbers])

    def _mixed_targets(
        self, batch: Batch, numbers: RowNumbers, mixes: Mixes, classes: int
    ) -> Tensor:
        """Return the probabilities of the classes, float32 [m, classes]."""
        own = self._targets(batch, numbers)
        other = self._targets(batch, partners(numbers, len(batch.whole.positions)))
        shares = torch.from_numpy(mixes.shares[numbers]).float().to(own.device)[:, None]
        own, other = (F.one_hot(chosen, classes).float() for chosen in (own, other))
        return shares * own + (1 - shares) * other

    def _no_sync(self) -> AbstractContextManager[None]:
        model = self.model
        if isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()
