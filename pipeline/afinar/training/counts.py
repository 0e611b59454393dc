"""What is counted of predictions, as a torchmetrics metric: states that are sums, added up over workers when asked.

A module of its own because importing torchmetrics takes seconds, which only those who score should pay.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

TOP: Final = 5
BINS: Final = 15  # as in Guo et al. 2017


class Tally(Metric):
    """Sums over samples, all exact or float64, so that any split of the samples over workers gives the same.

    After `compute`: `loss` float64, `among_top` int64; `right`, `targets`, `predictions` int64 [classes];
    `bins` float64 [3, 15], in each interval of confidence (a, b] its samples, their confidence, and those right.
    The calibration error of torchmetrics itself would do but for a sixteenth bin, of confidences that are exactly 1,
    and for sums in float32.
    """

    full_state_update = False
    loss: Tensor
    among_top: Tensor
    right: Tensor
    targets: Tensor
    predictions: Tensor
    bins: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._classes = classes
        self.add_state("loss", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("among_top", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("right", "targets", "predictions"):
            self.add_state(name, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bins", torch.zeros(3, BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count logits float64 [m, classes] against class numbers int64 [m]; m may be 0."""
        self.loss += F.cross_entropy(logits, targets, reduction="sum")
        self.among_top += (logits.topk(min(TOP, self._classes)).indices == targets[:, None]).sum()
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        right = predicted == targets
        self.right += targets[right].bincount(minlength=self._classes)
        self.targets += targets.bincount(minlength=self._classes)
        self.predictions += predicted.bincount(minlength=self._classes)
        edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=logits.device)
        place = torch.bucketize(confidence, edges[1:-1])
        self.bins += torch.stack(
            [
                place.bincount(weights, minlength=BINS)
                for weights in (torch.ones_like(confidence), confidence, right.double())
            ]
        )

    def compute(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {
            "loss": self.loss,
            "among_top": self.among_top,
            "right": self.right,
            "targets": self.targets,
            "predictions": self.predictions,
            "bins": self.bins,
        }
