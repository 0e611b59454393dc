"""Counts of predictions from which metrics are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.training.distributed import Group

TOP_K: Final = 5
BINS: Final = 15  # of confidence, as in Guo et al. 2017


@dataclass
class ClassificationCounts:
    """Sums over samples. Integers and float64, so that their total hardly depends on their order.

    `loss` float64 is the sum of cross-entropies; `top_k` int64 counts targets among the five most
    probable classes. `correct`, `targets` and `predictions` int64 [classes] count samples by class.
    `bins` float64 [3, 15] holds, for each confidence interval (a, b], the number of samples, the
    sum of their confidences, and the number of correct ones.
    """

    loss: Tensor
    top_k: Tensor
    correct: Tensor
    targets: Tensor
    predictions: Tensor
    bins: Tensor

    @classmethod
    def zeros(cls, classes: int, device: torch.device) -> ClassificationCounts:
        """Return counts of no sample."""

        def by_class() -> Tensor:
            return torch.zeros(classes, dtype=torch.int64, device=device)

        return cls(
            loss=torch.zeros((), dtype=torch.float64, device=device),
            top_k=torch.zeros((), dtype=torch.int64, device=device),
            correct=by_class(),
            targets=by_class(),
            predictions=by_class(),
            bins=torch.zeros(3, BINS, dtype=torch.float64, device=device),
        )

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add samples: logits float64 [m, classes] and class numbers int64 [m]; m may be 0."""
        classes = len(self.targets)
        self.loss += F.cross_entropy(logits, targets, reduction="sum")
        self.top_k += (logits.topk(min(TOP_K, classes)).indices == targets[:, None]).sum()

        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        correct = predicted == targets
        self.correct += targets[correct].bincount(minlength=classes)
        self.targets += targets.bincount(minlength=classes)
        self.predictions += predicted.bincount(minlength=classes)

        edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=logits.device)
        bin_of_sample = torch.bucketize(confidence, edges[1:-1])
        self.bins += torch.stack(
            [
                bin_of_sample.bincount(weights, minlength=BINS)
                for weights in (torch.ones_like(confidence), confidence, correct.double())
            ]
        )

    def all_reduce_sum(self, group: Group) -> None:
        """Replace the counts by their sums over all workers."""
        for counts in (
            self.loss,
            self.top_k,
            self.correct,
            self.targets,
            self.predictions,
            self.bins,
        ):
            group.all_reduce_sum(counts)
