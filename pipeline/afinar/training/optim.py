"""Following the gradient: optimiser, schedule, clipping, and an average of the weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from afinar.config.train import Schedule, TrainConfig

_RATES: dict[str, dict[str, float]] = {
    "adamw": {"frozen": 1e-2, "last": 5e-4, "full": 5e-4, "scratch": 1e-3},
    "adam": {"frozen": 1e-2, "last": 5e-4, "full": 5e-4, "scratch": 1e-3},
    "rmsprop": {"frozen": 1e-3, "last": 1e-4, "full": 1e-4, "scratch": 1e-3},
    "sgd": {"frozen": 1e-1, "last": 1e-2, "full": 1e-2, "scratch": 5e-2},
}
_MOMENTUM = 0.9


def peak_rate(config: TrainConfig) -> float:
    """`--learning-rate`, or what suits optimiser and regime."""
    return config.learning_rate or _RATES[config.optimizer][config.regime_kind]


def lr_at_step(schedule: Schedule, warmup: float, step: int, steps: int) -> float:
    """Share of the peak rate in `step` of `steps`: a linear rise over the share `warmup` of them, then the schedule.

    Cosine: Loshchilov and Hutter, arXiv 1608.03983.
    """
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[
        schedule
    ]


class Optimizer:
    """One optimiser over parameter groups; its rate is a pure function of the step.

    Each group has `params`, `weight_decay` and `factor`, its own share of the rate. AdamW: arXiv 1711.05101. The
    average keeps `--ema` of itself in a step, and less in the first ones, so that it soon forgets the beginning.
    """

    def __init__(
        self, module: nn.Module, groups: list[dict[str, Any]], config: TrainConfig, steps: int
    ) -> None:
        self._config, self._steps, self._rate = config, steps, peak_rate(config)
        self._module = module
        self._optimizer = _optimizer(config, groups)
        self._average = copy.deepcopy(module).requires_grad_(False) if config.ema else None

    def step(self, loss: Tensor, step: int) -> None:
        """Follow the gradient of `loss` once, at the rate of `step`."""
        factor = lr_at_step(self._config.schedule, self._config.warmup, step, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * factor * group["factor"]
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._config.clip_norm:
            parameters = [one for group in self._optimizer.param_groups for one in group["params"]]
            clip_grad_norm_(parameters, self._config.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            follow(self._average, self._module, min(self._config.ema, (1 + step) / (10 + step)))

    @property
    def result(self) -> nn.Module:
        """What is evaluated and published: the module, or the average of its weights where there is one."""
        return self._module if self._average is None else self._average

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on besides `result` and the step's number."""
        found = {
            f"optimizer.{number}.{name}": value
            for number, state in self._optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        if self._average is not None:
            found |= {
                f"module.{name}": tensor for name, tensor in self._module.state_dict().items()
            }
        return found

    def load(self, result: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Go back to where `result`'s state dict and `state` were taken."""
        self.result.load_state_dict(result)
        if self._average is not None:
            self._module.load_state_dict(_below("module.", state))
        parameters = [one for group in self._optimizer.param_groups for one in group["params"]]
        per_parameter: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer.", state).items():
            number, _, key = name.partition(".")
            per_parameter.setdefault(int(number), {})[key] = _laid_out_like(
                parameters[int(number)], tensor
            )
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, keep: float) -> None:
    """Move the average's parameters and buffers towards the module's; what counts is copied.

    What has not moved stays bit for bit: a + w (a - a) is a.
    """
    pairs = list(zip(average.state_dict().values(), module.state_dict().values(), strict=True))
    real = [(mean, new) for mean, new in pairs if mean.is_floating_point()]
    torch._foreach_lerp_([mean for mean, _ in real], [new for _, new in real], 1 - keep)
    for mean, new in pairs:
        if not mean.is_floating_point():
            mean.copy_(new)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)
    }


def _optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    rate = peak_rate(config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=_MOMENTUM, nesterov=True, fused=True)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, fused=True)


def _laid_out_like(parameter: Tensor, saved: Tensor) -> Tensor:
    """A saved tensor in its parameter's memory format: fused optimisers walk both as flat memory."""
    return torch.empty_like(parameter).copy_(saved) if saved.shape == parameter.shape else saved
