"""Linear head solved on features: multinomial logistic regression with L2 regularisation.

The problem is convex, so there is no learning rate and no number of epochs to choose. Its only
hyperparameter, the strength of the regularisation, is chosen on validation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afinar.errors import ShortfallError
from afinar.training.metrics import platt_smoothing
from afinar.training.optimizers import optim

# Candidates for C, the strongest regularisation first: each solution is close to the next one.
_C_PATH: Final = tuple(10 ** (exponent / 2) for exponent in range(-10, 7))
# Powers of the standard deviation by which features are divided: 0 divides all by one number, 1
# standardises them.
_SMOOTH: Final = (0.0, 0.5)
_STANDARDISED: Final = 1.0
MAX_CHOICES: Final = len(_SMOOTH)
"""Number of heads that a solved head is the mean of, at most."""

# A set with so few training samples has few of validation, too: folds of training add to them.
_MAX_CROSS_VALIDATED: Final = 1000
_FOLDS: Final = 5
_PATIENCE: Final = 2  # candidates without a lower validation loss before the path ends
_TEMPERATURES: Final = tuple(2 ** (step / 8) for step in range(-32, 33))  # 1/16 to 16
_MAX_ITERATIONS: Final = 300
# Of a candidate on a path, which starts from the one before it. Weak regularisation would take
# hundreds; to stop early there regularises, too.
_PATH_ITERATIONS: Final = 20
_HISTORY: Final = 10  # of L-BFGS: pairs of steps and gradient differences
_TOLERANCE: Final = 1e-6  # of the largest derivative of the mean loss
_MAX_KEPT: Final = 2**26  # scaled features that are kept, 512 MB; more are scaled in each pass
_BLOCK: Final = 16384  # rows per matrix product: bounds the memory of copies in double precision


@dataclass(frozen=True)
class Features:
    """Features float32 [n, width] of samples, and their class numbers int64 [n]."""

    values: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Objective:
    """Cross-entropy with label smoothing and class weights float [classes], as in training."""

    classes: int
    smoothing: float = 0.0
    class_weights: Tensor | None = None

    def sum_and_gradient(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over samples, and its gradient by the logits [n, classes].

        With t the weighted target of a sample and p its probabilities, its loss is
        -sum(t * log p), and the gradient p * sum(t) - t.
        """
        log_p = logits.log_softmax(dim=1)
        own, rows = targets[:, None], torch.ones_like(log_p[:, :1])
        if self.class_weights is not None:
            rows = self.class_weights.to(logits)[own]
        rows = rows * (1 - self.smoothing)
        loss = -(rows * log_p.gather(1, own)).sum()
        gradient = log_p.exp()
        if self.smoothing:
            spread = torch.full_like(log_p[0], self.smoothing / self.classes)
            if self.class_weights is not None:
                spread *= self.class_weights.to(logits)
            loss -= (log_p @ spread).sum()
            gradient = gradient * (rows + spread.sum()) - spread
        else:
            gradient *= rows
        return loss, gradient.scatter_add_(1, own, -rows)

    def total_weight(self, targets: Tensor) -> float:
        """Return the divisor that makes the sum a mean: a count, or a sum of class weights."""
        if self.class_weights is None:
            return float(len(targets))
        return float(self.class_weights.to(targets.device)[targets].sum())


@dataclass(frozen=True)
class Choice:
    """Hyperparameters of one head, chosen on held-out samples.

    `c` is the inverse of the strength of the regularisation, `power` that of the scaling of the
    features, and `temperature` the number by which the solution is divided.
    """

    c: float
    power: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class LinearHead:
    """Weight [classes, width] and bias [classes] of a linear layer, both float64.

    It is the mean of heads with these `choices`. `held_out` is the number of samples that they were
    chosen on; 0 if they were not.
    """

    weight: Tensor
    bias: Tensor
    choices: tuple[Choice, ...]
    held_out: int = 0

    def divided(self, temperature: float) -> LinearHead:
        """Return the head with its logits divided by a temperature."""
        choices = tuple(
            replace(choice, temperature=choice.temperature * temperature) for choice in self.choices
        )
        return replace(
            self, weight=self.weight / temperature, bias=self.bias / temperature, choices=choices
        )

    def logits(self, values: Tensor) -> Tensor:
        """Return float64 [n, classes] for features [n, width]."""
        blocks = [
            torch.addmm(self.bias, block.double(), self.weight.T) for block in _blocks(values)
        ]
        return torch.cat(blocks)


class SolvedHeads(NamedTuple):
    """The best head, and the one to begin with if the backbone goes on to train.

    They are the same object unless the best head is that of standardised features.
    """

    best: LinearHead
    smooth: LinearHead


def solve_heads(train: Features, validation: Features, objective: Objective) -> SolvedHeads:
    """Return linear heads whose C and scaling of the features are chosen on held-out samples.

    Held out are the samples of validation. Of a small set, so are those of training, in five folds:
    each is predicted by a head that is solved on the other folds.

    For each of several scalings of the features there is a path of C, which begins with the
    strongest regularisation. Each solution starts from the one before it, and the path ends after
    candidates that do not improve. A strongly regularised head often ranks classes best and is too
    little confident, so each candidate is divided by the temperature that fits the held-out samples
    before it is compared by its cross-entropy.

    The smooth head is the mean of two: of features that are divided by one number, and by the root
    of their deviation. The size of a feature usually says how much it matters. Where it does not,
    standardised features give a lower loss: their head is the best if its gain exceeds one standard
    error (Breiman et al. 1984), so that few held-out samples do not choose it by luck. Its weights
    for features that hardly vary are large, so the backbone must not train with it: on a set of
    fabric the loss rose from 0.7 to 1,600 in the first epoch.

    The returned weights apply to plain features.
    """
    smooth = _solve_smooth(train, validation, objective)
    standardised = _solve_path(train, validation, objective, _STANDARDISED)
    gain = smooth.losses() - standardised.losses()
    is_clear = gain.mean() > gain.std() / math.sqrt(len(gain))
    return SolvedHeads(standardised.head if is_clear else smooth.head, smooth.head)


def solve_head(train: Features, validation: Features, objective: Objective) -> LinearHead:
    """Return the best head. See `solve_heads`."""
    return solve_heads(train, validation, objective).best


def solve_smooth(train: Features, validation: Features, objective: Objective) -> LinearHead:
    """Return the head to begin with if the backbone goes on to train. See `solve_heads`."""
    return _solve_smooth(train, validation, objective).head


def _solve_smooth(train: Features, validation: Features, objective: Objective) -> _Candidate:
    return _combine([_solve_path(train, validation, objective, power) for power in _SMOOTH])


def solve_standardised(train: Features, validation: Features, objective: Objective) -> LinearHead:
    """Return the best head of the path of C on standardised features. See `solve_heads`."""
    return _solve_path(train, validation, objective, _STANDARDISED).head


class _Candidate(NamedTuple):
    """A calibrated head, its logits [n, classes] on held-out samples, and their targets [n]."""

    head: LinearHead
    logits: Tensor
    targets: Tensor

    def losses(self) -> Tensor:
        """Return the cross-entropy of each sample, float64 [n]."""
        return F.cross_entropy(self.logits, self.targets, reduction="none")


def _combine(candidates: list[_Candidate]) -> _Candidate:
    """Return the mean of candidates, calibrated."""
    logits = torch.stack([candidate.logits for candidate in candidates]).mean(dim=0)
    targets = candidates[0].targets
    temperature, _ = _fit_temperature(logits, targets)
    head = _mean([candidate.head for candidate in candidates]).divided(temperature)
    return _Candidate(head, logits / temperature, targets)


def _mean(heads: list[LinearHead]) -> LinearHead:
    """Return the head whose logits are the means of those of `heads`."""
    weight = torch.stack([head.weight for head in heads]).mean(dim=0)
    bias = torch.stack([head.bias for head in heads]).mean(dim=0)
    choices = tuple(choice for head in heads for choice in head.choices)
    return LinearHead(weight, bias, choices, heads[0].held_out)


def _solve_path(
    train: Features, validation: Features, objective: Objective, power: float
) -> _Candidate:
    """Return the best head of the path of one scaling."""
    solver = _Solver(train, objective, _Scaling.of(train.values, power))
    folds = _make_folds(train, objective, power) if len(train) <= _MAX_CROSS_VALIDATED else []
    targets = torch.cat([validation.targets, *(fold.held_out.targets for fold in folds)])
    best: _Candidate | None = None
    best_loss, worse = math.inf, 0
    for c in _C_PATH:
        solver.minimize(c, _PATH_ITERATIONS)
        head = solver.head(c)
        logits = torch.cat([head.logits(validation.values), *(fold.logits(c) for fold in folds)])
        temperature, loss = _fit_temperature(logits, targets)
        if loss < best_loss:
            head = replace(head.divided(temperature), held_out=len(targets))
            best = _Candidate(head, logits / temperature, targets)
            best_loss, worse = loss, 0
        else:
            worse += 1
        if worse >= _PATIENCE:
            break
    if best is None:
        raise ShortfallError("the features of the backbone are not finite numbers")
    return best


def fit_head(train: Features, objective: Objective, c: float, power: float = 1.0) -> LinearHead:
    """Return the head that minimizes C * (sum of cross-entropies) + |W|^2 / 2.

    W are the weights of scaled features; the bias is not regularised. With `power` 1 features are
    standardised: that is scikit-learn's LogisticRegression behind a StandardScaler.
    """
    solver = _Solver(train, objective, _Scaling.of(train.values, power))
    solver.minimize(c, _MAX_ITERATIONS)
    return solver.head(c)


def refit_head(
    chosen: LinearHead, train: Features, validation: Features, objective: Objective
) -> LinearHead:
    """Return the mean of heads with the choices of `chosen`, solved on both.

    Validation has made these choices. After that its samples are only labelled samples. The
    accuracy of the new head on them says nothing: report that of `chosen`.
    """
    both = Features(
        torch.cat([train.values, validation.values]), torch.cat([train.targets, validation.targets])
    )
    heads = [
        fit_head(both, objective, choice.c, choice.power).divided(choice.temperature)
        for choice in chosen.choices
    ]
    return replace(_mean(heads), held_out=chosen.held_out)


@dataclass(frozen=True)
class _Scaling:
    """Mean and divisor of each feature, float64 [width]; the power they were made with."""

    mean: Tensor
    divisor: Tensor
    power: float

    @classmethod
    def of(cls, values: Tensor, power: float) -> _Scaling:
        """Return divisors that are proportional to a power of the standard deviation.

        The mean variance of the scaled features is 1, so that one path of C serves all powers. A
        constant feature counts as one of standard deviation 1.
        """
        # Two passes: the difference of large sums would lose the variance of large features.
        mean = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
        for block in _blocks(values):
            mean += block.double().sum(dim=0) / len(values)
        squares = torch.zeros_like(mean)
        for block in _blocks(values):
            squares += (block.double() - mean).square().sum(dim=0)
        std = (squares / len(values)).sqrt()
        tiny = 1e-7 * mean.abs().clamp_min(1e-30)
        std = torch.where(std > tiny, std, torch.ones_like(std))
        divisor = std**power
        return cls(mean, divisor * (std / divisor).square().mean().sqrt(), power)

    def apply(self, values: Tensor) -> Tensor:
        """Return scaled features, float64."""
        return (values.double() - self.mean) / self.divisor


class _Solver:
    """L-BFGS over weights of scaled features. Products are in single precision, sums in double.

    Liu and Nocedal 1989, doi 10.1007/BF01589116, as torch implements it. The weights of the last
    solution are the start of the next one.

    With fewer samples than features, the solution is a combination of the samples: any other part
    of the weights changes no logit and adds to the penalty. So the problem is solved in an
    orthonormal basis of the samples, which has far fewer numbers.
    """

    def __init__(self, train: Features, objective: Objective, scaling: _Scaling) -> None:
        self._train, self._objective, self._scaling = train, objective, scaling
        self._inputs: Tensor | None = None
        self._basis: Tensor | None = None
        samples, width = train.values.shape
        if samples * width <= _MAX_KEPT:
            inputs = scaling.apply(train.values)
            if samples < width:
                self._basis, triangle = torch.linalg.qr(inputs.T)  # [width, samples]
                inputs, width = triangle.T, samples
            self._inputs = inputs.float().contiguous()
        device = train.values.device
        self._weight = torch.zeros(objective.classes, width, dtype=torch.float64, device=device)
        self._bias = torch.zeros(objective.classes, dtype=torch.float64, device=device)
        self._total = objective.total_weight(train.targets)

    def minimize(self, c: float, max_iterations: int) -> None:
        """Minimize the mean cross-entropy + |W|^2 / (2 * C * total weight).

        Two classes have opposite weights here, w / 2 and -w / 2, and one vector w in scikit-learn.
        Its penalty |w|^2 is twice |W|^2.
        """
        decay = (2 if self._objective.classes == 2 else 1) / (c * self._total)
        parameters = [self._weight, self._bias]
        optimizer = optim.LBFGS(
            parameters,
            max_iter=max_iterations,
            history_size=_HISTORY,
            tolerance_grad=_TOLERANCE,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            loss, weight_gradient, bias_gradient = self._loss_and_gradients()
            self._weight.grad = weight_gradient + decay * self._weight
            self._bias.grad = bias_gradient
            return loss + decay / 2 * self._weight.square().sum()

        optimizer.step(closure)  # type: ignore[no-untyped-call]

    def _loss_and_gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        loss = torch.zeros((), dtype=torch.float64, device=self._bias.device)
        weight_gradient = torch.zeros_like(self._weight)
        bias_gradient = torch.zeros_like(self._bias)
        weight = self._weight.float()
        for inputs, targets in self._blocks():
            logits = (inputs @ weight.T).double() + self._bias
            block_loss, gradient = self._objective.sum_and_gradient(logits, targets)
            loss += block_loss
            weight_gradient += gradient.float().T @ inputs
            bias_gradient += gradient.sum(dim=0)
        return loss / self._total, weight_gradient / self._total, bias_gradient / self._total

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield scaled features in double precision, or their coordinates, and their targets."""
        if self._inputs is not None:
            yield self._inputs, self._train.targets
            return
        values, targets = _blocks(self._train.values), _blocks(self._train.targets)
        for block, block_targets in zip(values, targets, strict=True):
            yield self._scaling.apply(block).float(), block_targets

    def head(self, c: float) -> LinearHead:
        """Return the solution for plain features: w (x - mean) / d + b = (w / d) x + b'."""
        weight = self._weight if self._basis is None else self._weight @ self._basis.T
        weight = weight / self._scaling.divisor
        bias = self._bias - weight @ self._scaling.mean
        return LinearHead(weight, bias, (Choice(c, self._scaling.power),))


@dataclass(frozen=True)
class _Fold:
    """A solver on all folds but one, and the samples of that one."""

    solver: _Solver
    held_out: Features

    def logits(self, c: float) -> Tensor:
        """Solve for C, and return the logits of the held-out samples."""
        self.solver.minimize(c, _PATH_ITERATIONS)
        return self.solver.head(c).logits(self.held_out.values)


def _make_folds(train: Features, objective: Objective, power: float) -> list[_Fold]:
    """Return stratified folds: the samples of a class go to the folds in turn.

    The only sample of a class is not held out: no head could know its class.
    """
    device = train.targets.device
    numbers = torch.full((len(train),), -1, dtype=torch.int64, device=device)
    dealt = 0
    for label in range(objective.classes):
        rows = torch.nonzero(train.targets == label).flatten()
        if len(rows) > 1:
            numbers[rows] = (torch.arange(len(rows), device=device) + dealt) % _FOLDS
            dealt += len(rows)

    folds = []
    for number in range(_FOLDS):
        held_out, others = numbers == number, numbers != number
        if held_out.any():
            values = train.values[others]
            solved_on = Features(values, train.targets[others])
            solver = _Solver(solved_on, objective, _Scaling.of(values, power))
            folds.append(_Fold(solver, Features(train.values[held_out], train.targets[held_out])))
    return folds


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    return torch.split(tensor, _BLOCK)


def _fit_temperature(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the temperature of a grid with the lowest mean cross-entropy, and that loss.

    The targets are those of `platt_smoothing`. Otherwise a small validation split that is predicted
    without a mistake would make the head infinitely confident.
    """
    smoothing = platt_smoothing(*logits.shape)
    losses = {
        temperature: F.cross_entropy(
            logits / temperature, targets, label_smoothing=smoothing
        ).item()
        for temperature in _TEMPERATURES
    }
    temperature = min(losses, key=losses.__getitem__)
    return temperature, losses[temperature]
