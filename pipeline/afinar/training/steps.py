"""One epoch of training, and scores of samples: each worker on its share, sums over all of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from afinar.errors import ShortfallError
from afinar.models.networks.network import forward_batch
from afinar.training.checkpoint import TrainState
from afinar.training.distributed import Group
from afinar.training.inputs import Inputs
from afinar.training.loading import load
from afinar.training.optim import Optimizer
from afinar.training.rng import step_seed
from afinar.training.sampler import Rows, share
from afinar.training.timing import EpochTimer

_LOOK_EVERY = 20


@dataclass(frozen=True)
class Samples:
    """Rows of the dataset with their class numbers, aligned."""

    rows: Rows
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def targets_on(self, device: torch.device, positions: Rows) -> Tensor:
        """int64 [n]: classes of the samples at `positions`."""
        return torch.from_numpy(self.targets[positions]).to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Cross-entropy with smoothed labels (Szegedy et al. 2016, arXiv 1512.00567) and a weight for each class."""

    smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum over samples."""
        return F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.smoothing,
        )

    def weight(self, samples: Samples, positions: Rows) -> Tensor | int:
        """What the sum is divided by for a mean: the number of samples, or the weights of their classes."""
        if self.class_weights is None:
            return len(positions)
        return self.class_weights[samples.targets_on(self.class_weights.device, positions)].sum()


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """What one step of training needs, the same in all of them.

    `threads` gather ahead. Every twenty steps, and every `checkpoint_steps`, the loss is looked at, which waits
    for the device and for every worker.
    """

    model: nn.Module
    inputs: Inputs
    samples: Samples
    descent: Optimizer
    loss: Loss
    group: Group
    seed: int
    precision: torch.dtype
    threads: int
    checkpoint_steps: int

    def run(
        self,
        batches: Sequence[Rows],
        cursor: TrainState,
        sums: Tensor,
        ledger: EpochTimer,
        enter: Callable[[int], None],
    ) -> Iterator[None]:
        """Train on global `batches` (positions in `samples`), each worker on its share, and yield after each step.

        Moves the cursor, and adds this worker's loss and hits to `sums`. Calls `enter` with the number of a
        batch in its epoch before it is gathered. Raises ShortfallError, on all workers alike, when the loss is
        no longer finite; no step is yielded between that and the last look at it.
        """
        first = cursor.batch
        mine = [
            (first + number, share(one, self.group.rank, self.group.size))
            for number, one in enumerate(batches)
        ]
        with contextlib.closing(load(self._gather(enter), mine, self.threads)) as reading:
            for batch in batches:
                with ledger.measure("waiting"):
                    (_, positions), gathered = next(reading)
                ledger.batch_arrived()
                self._step(batch, positions, gathered, cursor, sums, ledger)
                cursor.batch, cursor.step = cursor.batch + 1, cursor.step + 1
                if self._looks(cursor) or cursor.batch == first + len(batches):
                    self._require_finite(sums, cursor)
                yield

    def _gather(self, enter: Callable[[int], None]) -> Callable[[tuple[int, Rows]], Tensor]:
        def gather(numbered: tuple[int, Rows]) -> Tensor:
            number, positions = numbered
            enter(number)
            return self.inputs.gather(self.samples.rows[positions])

        return gather

    def _step(
        self,
        batch: Rows,
        mine: Rows,
        gathered: Tensor,
        cursor: TrainState,
        sums: Tensor,
        ledger: EpochTimer,
    ) -> None:
        torch.manual_seed(step_seed(self.seed, cursor.step, self.group.rank))
        images = self.inputs.finish(gathered, self.samples.rows[mine], cursor.epoch, ledger)
        with ledger.measure("compute"):
            targets = self._targets(mine)
            with autocast(self.group.device, self.precision):
                logits = self.model(images)
            losses = self.loss(logits.float(), targets)
            # DDP averages gradients over workers; times workers, over the weight of the global batch, makes
            # that a mean over its samples.
            self.descent.step(
                losses * (self.group.size / self.loss.weight(self.samples, batch)), cursor.step
            )
            sums += torch.stack(
                [losses.detach().double(), (logits.argmax(dim=1) == targets).sum().double()]
            )

    def _targets(self, positions: Rows) -> Tensor:
        return self.samples.targets_on(self.group.device, positions)

    def _looks(self, cursor: TrainState) -> bool:
        due = self.checkpoint_steps and cursor.step % self.checkpoint_steps == 0
        return bool(due or cursor.step % _LOOK_EVERY == 0)

    def _require_finite(self, sums: Tensor, cursor: TrainState) -> None:
        total = self.group.sum(sums[:1].clone())
        if not math.isfinite(float(total)):
            raise ShortfallError(
                f"the loss is not finite at step {cursor.step}, in epoch {cursor.epoch + 1}: give a smaller "
                "--learning-rate, or --clip-norm 1"
            )


def autocast(device: torch.device, precision: torch.dtype) -> Any:
    """Mixed precision where `precision` is not float32."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def predict(
    model: nn.Module, inputs: Inputs, rows: Rows, classes: int, group: Group, threads: int = 0
) -> tuple[Rows, Tensor]:
    """This worker's share of `rows`: their positions among them, and logits float32 [m, classes].

    No sample is padded or repeated. In float32, as published models are asked.
    """
    model.eval()
    mine = share(np.arange(len(rows)), group.rank, group.size)
    size = forward_batch(group.device)
    parts = [mine[start : start + size] for start in range(0, len(mine), size)]
    unmeasured = EpochTimer(group.device)
    found: list[Tensor] = []
    reading = load(lambda part: inputs.gather(rows[part]), parts, threads)
    with contextlib.closing(reading), torch.no_grad():
        for part, gathered in reading:
            found.append(model(inputs.finish(gathered, rows[part], None, unmeasured)).float())
    return mine, torch.cat(found) if found else torch.zeros(0, classes, device=group.device)
