"""Refit of a solved head on training and validation pictures together.

Validation chooses the strength of the regularisation and the scaling of the features. After that
its pictures are only labelled pictures, and a head that is solved on them, too, has more to learn
from. Its accuracy on validation then says nothing: what is reported is that of the head that was
chosen. The test split stays untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.training.linear_probe import Features, LinearHead, Objective, solve_head

_ITERATIONS: Final = 100
_HISTORY: Final = 20  # of L-BFGS: pairs of steps and gradient differences
_TOLERANCE: Final = 1e-6  # of the largest derivative of the mean loss
_BLOCK: Final = 16384  # rows that are scaled at a time, in double precision
_MAX_KEPT: Final = 2**26  # scaled features that are kept, 256 MB; more are scaled in each pass


class ChosenHead(NamedTuple):
    """The head with the lowest loss on validation, and the power of the scaling behind it."""

    head: LinearHead
    power: float


def choose_head(
    train: Features, validation: Features, objective: Objective, scalings: tuple[float, ...]
) -> ChosenHead:
    """Return the best of the heads of each scaling; see `solve_head`."""
    found = [
        ChosenHead(solve_head(train, validation, objective, (power,)), power) for power in scalings
    ]

    def loss(chosen: ChosenHead) -> float:
        logits = chosen.head.logits(validation.values)
        return F.cross_entropy(logits, validation.targets).item()

    return min(found, key=loss)


def refit(
    chosen: ChosenHead, train: Features, validation: Features, objective: Objective
) -> LinearHead:
    """Return the head with the same C and scaling, solved on both splits.

    It is divided by the temperature by which the chosen head was divided: that is how much larger
    the weights are that are solved on the training split alone.
    """
    both = Features(
        torch.cat([train.values, validation.values]), torch.cat([train.targets, validation.targets])
    )
    c, power = chosen.head.c, chosen.power
    alone = _minimize(train, objective, _Scaling.of(train, power), c, chosen.head)
    temperature = _ratio(alone.weight, chosen.head.weight)
    head = _minimize(both, objective, _Scaling.of(both, power), c, alone)
    return LinearHead(head.weight / temperature, head.bias / temperature, c, chosen.head.held_out)


def _ratio(weight: Tensor, divided: Tensor) -> float:
    """Return t of the least squares of weight - t * divided, at least 1e-3.

    Only differences between classes count: what all classes have in common changes no probability.
    """
    weight, divided = (values - values.mean(dim=0) for values in (weight, divided))
    norm = divided.square().sum()
    return max(1e-3, float((weight * divided).sum() / norm)) if norm > 0 else 1.0


@dataclass(frozen=True)
class _Scaling:
    """Mean and divisor of each feature, float64 [width]; the mean variance becomes 1."""

    mean: Tensor
    divisor: Tensor

    @classmethod
    def of(cls, samples: Features, power: float) -> _Scaling:
        """Return divisors that are proportional to a power of the standard deviation."""
        # Two passes: the difference of large sums would lose the variance of large features.
        count, blocks = len(samples), torch.split(samples.values, _BLOCK)
        mean = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0) / count
        squares = [(block.double() - mean).square().sum(dim=0) for block in blocks]
        std = (torch.stack(squares).sum(dim=0) / count).sqrt()
        # A constant feature counts as one of standard deviation 1.
        std = torch.where(std > 1e-7 * mean.abs().clamp_min(1e-30), std, torch.ones_like(std))
        divisor = std**power
        return cls(mean, divisor * (std / divisor).square().mean().sqrt())


def _scaled_blocks(samples: Features, scaling: _Scaling) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield scaled features float32 [n, width] and their class numbers."""
    for values, targets in zip(
        torch.split(samples.values, _BLOCK), torch.split(samples.targets, _BLOCK), strict=True
    ):
        yield ((values.double() - scaling.mean) / scaling.divisor).float(), targets


def _minimize(
    samples: Features, objective: Objective, scaling: _Scaling, c: float, start: LinearHead
) -> LinearHead:
    """Minimize the mean cross-entropy + |W|^2 / (2 * C * total weight) by L-BFGS, from `start`.

    W are the weights of scaled features. Two classes have opposite weights, w / 2 and -w / 2: the
    penalty |w|^2 of the one vector w is twice |W|^2.
    """
    total = objective.total_weight(samples.targets)
    decay = (2 if objective.classes == 2 else 1) / (c * total)
    weight = (start.weight * scaling.divisor).clone()
    bias = (start.bias + start.weight @ scaling.mean).clone()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        history_size=_HISTORY,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    is_kept = samples.values.numel() <= _MAX_KEPT
    kept = list(_scaled_blocks(samples, scaling)) if is_kept else None

    def closure() -> Tensor:
        loss = decay * total / 2 * weight.square().sum()
        weight_gradient, bias_gradient = decay * total * weight, torch.zeros_like(bias)
        narrow = weight.float()
        for inputs, targets in kept or _scaled_blocks(samples, scaling):
            # Products in single precision, sums in double precision.
            logits = (inputs @ narrow.T).double() + bias
            block_loss, gradient = objective.sum_and_gradient(logits, targets)
            loss += block_loss
            weight_gradient += gradient.float().T @ inputs
            bias_gradient += gradient.sum(dim=0)
        weight.grad, bias.grad = weight_gradient / total, bias_gradient / total
        return loss / total

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    plain = weight / scaling.divisor
    return LinearHead(plain, bias - plain @ scaling.mean, c)
