"""One epoch of training, and evaluation: sums over samples, equal for any number of workers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from pipeline.errors import ShortfallError
from pipeline.models.network import forward_batch
from pipeline.training.group import Group
from pipeline.training.inputs import Inputs
from pipeline.training.order import share

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Rows of the dataset with their class numbers, aligned."""

    rows: Rows
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over samples: cross-entropy in nats, share of samples whose best class is right."""

    loss: float
    top1: float


class Descent:
    """AdamW under one cycle: a linear warm-up over a tenth of the steps, then a cosine to zero.

    Loshchilov and Hutter: arXiv 1711.05101 (decoupled weight decay), arXiv 1608.03983 (cosine).
    """

    def __init__(self, module: nn.Module, steps: int, rate: float, weight_decay: float) -> None:
        warm = max(1, steps // 10)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        self._optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=weight_decay, fused=True)
        self._schedule = LambdaLR(self._optimizer, factor)

    def step(self, loss: Tensor) -> None:
        """Follow the gradient of `loss` once."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()


def train_one_epoch(
    model: nn.Module, inputs: Inputs, samples: Samples, batches: list[Rows], epoch: int, descent: Descent, group: Group
) -> Score:
    """Train on global `batches` (positions in `samples`), each worker on its share.

    Gradients are weighted by samples, so uneven shares do not bias them. Raises ShortfallError when the
    loss is no longer finite.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=group.device)
    for batch in batches:
        mine = share(batch, group.rank, group.size)
        targets = _targets(samples, mine, group)
        logits = model(inputs.batch(samples.rows[mine], epoch)).float()
        losses = F.cross_entropy(logits, targets, reduction="sum")
        # DDP averages gradients over workers; times workers over the global batch makes that a mean
        # over samples.
        descent.step(losses * (group.size / len(batch)))
        sums += torch.stack([losses.detach(), _hits(logits, targets)]).double()
    group.sum(sums)
    score = _score(sums, sum(map(len, batches)))
    if not math.isfinite(score.loss):
        raise ShortfallError(f"the loss is not finite in epoch {epoch + 1}: give a smaller --learning-rate")
    return score


def predict(model: nn.Module, inputs: Inputs, rows: Rows, classes: int, group: Group) -> Tensor:
    """Logits float32 [n, classes] of `rows`, on every worker.

    Each computes its share; no sample is padded or repeated.
    """
    logits = torch.zeros(len(rows), classes, device=group.device)
    mine = share(np.arange(len(rows)), group.rank, group.size)
    model.eval()
    with torch.inference_mode():
        size = forward_batch(group.device)
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            logits[torch.from_numpy(part).to(group.device)] = model(inputs.batch(rows[part], None)).float()
    return group.sum(logits)


def evaluate(logits: Tensor, samples: Samples) -> Score:
    """Score of logits [n, classes] against the samples' classes."""
    targets = torch.from_numpy(samples.targets).to(logits.device)
    sums = torch.stack([F.cross_entropy(logits, targets, reduction="sum"), _hits(logits, targets)])
    return _score(sums.double(), len(samples))


def _targets(samples: Samples, positions: Rows, group: Group) -> Tensor:
    return torch.from_numpy(samples.targets[positions]).to(group.device)


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == targets).sum()


def _score(sums: Tensor, count: int) -> Score:
    loss, hits = (float(value) / count for value in sums)
    return Score(loss=loss, top1=hits)
