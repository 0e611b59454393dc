"""What a split says of a model, from each worker's own share of it: no sample is padded, repeated or sent around.

Every function here is called by all workers of the process group, on its device, as each adds its sums to the others'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.errors import ShortfallError
from afinar.training.distributed import Group

_BLOCK: Final = 8192  # samples looked at in one go: bounds what float64 copies of logits take


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model on one split; JSON-able, without NaN.

    `loss` is the mean cross-entropy in nats; `top1` and `top5` are shares of samples, `top5` None below six classes.
    `recall` is by class name, None for a class without samples. `macro_f1` is the mean over classes that occur among
    targets or predictions, as torchmetrics and scikit-learn have it: one that is predicted and never true counts as 0,
    one that does neither is left out. `auroc` is exact, for two classes that both occur, of the second one.
    `calibration_error` is the expected one: over 15 equal bins of the best class's probability, the mean distance
    between confidence and accuracy (Guo et al. 2017, arXiv 1706.04599).
    """

    loss: float
    top1: float
    top5: float | None
    recall: dict[str, float | None]
    macro_f1: float
    auroc: float | None
    calibration_error: float
    samples: int


def score(
    logits: Tensor, targets: Tensor, classes: list[str], *, temperature: float = 1.0
) -> Score:
    """Score this worker's logits [m, classes] against class numbers int64 [m]; the same result on every worker.

    Shares may differ in length and be empty. Probabilities are those of logits divided by `temperature`.
    Raises ShortfallError on all workers where the loss is not finite, ValueError where no worker has a sample.
    """
    from afinar.training.counts import TOP, Tally

    tally = Tally(len(classes)).to(logits.device)
    area = _area(len(classes), logits.device)
    for block, wanted in _blocks(logits, targets):
        tally.update(block / temperature, wanted)
        if area is not None:
            area.update(_ranking(block), wanted)
    sums = {name: found.cpu() for name, found in tally.compute().items()}
    of_class: list[int] = sums["targets"].tolist()
    right: list[int] = sums["right"].tolist()
    samples = sum(of_class)
    if not samples:
        raise ValueError("there is no sample to score")
    loss = _finite(sums["loss"].item() / samples)
    return Score(
        loss=loss,
        top1=sum(right) / samples,
        top5=sums["among_top"].item() / samples if len(classes) > TOP else None,
        recall={
            name: hits / of if of else None
            for name, hits, of in zip(classes, right, of_class, strict=True)
        },
        macro_f1=_macro_f1(right, of_class, sums["predictions"].tolist()),
        # A collective: every worker sees the same counts, so all take part or none does.
        auroc=float(area.compute()) if area is not None and all(of_class) else None,
        calibration_error=float((sums["bins"][1] - sums["bins"][2]).abs().sum()) / samples,
        samples=samples,
    )


def fit_temperature(logits: Tensor, targets: Tensor, group: Group) -> float:
    """The temperature between 0.05 and 20 that makes the samples of all workers likeliest (Guo et al. 2017).

    The loss is convex in the inverse temperature: halving the interval, on the sign of the slope, finds its minimum to
    nine digits, in a number of steps that is the same for every worker. 1 where nothing else is likelier, and where
    the likelihood grows without end as the temperature falls: where every sample is right, nothing says how sure to be.
    Arguments and errors as for `score`; 1 without samples.
    """
    low, high = math.log(0.05), math.log(20.0)
    before = _nll(logits, targets, 1.0, group)
    if _slope(logits, targets, low, group) >= 0:
        return 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _slope(logits, targets, middle, group) < 0:
            low = middle
        else:
            high = middle
    temperature = math.exp((low + high) / 2)
    return temperature if _nll(logits, targets, temperature, group) < before else 1.0


_HALVINGS: Final = 32  # of an interval of 6: 1.4e-9


def _blocks(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """At least one block, if an empty one, in float64."""
    for start in range(0, max(1, len(targets)), _BLOCK):
        part = slice(start, start + _BLOCK)
        yield logits[part].detach().double(), targets[part]


def _area(classes: int, device: torch.device) -> Any:
    if classes != 2:
        return None
    from torchmetrics.classification import BinaryAUROC

    return BinaryAUROC(validate_args=False).to(device)


def _ranking(logits: Tensor) -> Tensor:
    """Numbers from 0 to 1 in the order of the second class's probability, which rounds to 1 above 37 nats."""
    return 0.5 + (logits[:, 1] - logits[:, 0]).atan() / math.pi


def _macro_f1(right: list[int], targets: list[int], predictions: list[int]) -> float:
    occurring = [
        2 * hits / (of + guessed)
        for hits, of, guessed in zip(right, targets, predictions, strict=True)
        if of + guessed
    ]
    return sum(occurring) / len(occurring)


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise ShortfallError(
            "the network's answers are not finite numbers: train with a smaller --learning-rate"
        )
    return loss


def _nll(logits: Tensor, targets: Tensor, temperature: float, group: Group) -> float:
    """Sum of the negative log-likelihood over all workers' samples."""
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for block, wanted in _blocks(logits, targets):
        total += F.cross_entropy(block / temperature, wanted, reduction="sum")
    return _finite(group.sum(total).item())


def _slope(logits: Tensor, targets: Tensor, log_temperature: float, group: Group) -> float:
    """The loss's slope in the temperature, but for a positive factor; never negative where every sample is right."""
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for block, wanted in _blocks(logits, targets):
        lead = block - block.gather(1, wanted[:, None])
        total -= ((lead / math.exp(log_temperature)).softmax(dim=1) * lead).sum()
    return group.sum(total).item()
