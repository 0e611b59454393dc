"""Optimizer of a training: learning-rate schedule, gradient clipping, average of the weights."""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_

from afinar.config.train import Schedule, TrainConfig
from afinar.errors import IntegrityError
from afinar.models.networks.deferred_compiler import without_compiler
from afinar.training.optimizers import optim

_MOMENTUM: Final = 0.9
# Those of Keras, which courses use. torch's alpha of 0.99 makes the first step three times as long.
_RMSPROP_RHO: Final = 0.9
_RMSPROP_EPS: Final = 1e-7

_SCALER_STATE: Final = ("scale", "_growth_tracker")  # what changes in a GradScaler


def lr_at_step(schedule: Schedule, warmup: float, step: int, steps: int) -> float:
    """Return the learning rate in `step` (from 0) of `steps`, as a share of the peak rate.

    The rate rises linearly over the share `warmup` of the steps, then follows the schedule; cosine:
    Loshchilov and Hutter, arXiv 1608.03983. Examples for 10 steps and warmup 0.2:

        step       0    1    2     4     6     8     9
        constant   0.5  1.0  1.0   1.0   1.0   1.0   1.0
        linear     0.5  1.0  1.0   0.75  0.5   0.25  0.125
        cosine     0.5  1.0  1.0   0.85  0.5   0.15  0.04
    """
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps

    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done))


class Optimizer:
    """A torch optimizer whose learning rate is a pure function of the step.

    `groups` are parameter groups with `params`, `weight_decay` and `lr_scale`, the group's share of
    the learning rate. `config` is resolved (`training.hyperparameters`). AdamW: arXiv 1711.05101.
    With `--ema` an average of the weights is kept; its decay in a step is min(--ema, (1 + step) /
    (10 + step)), so that the random first weights are soon forgotten: 0.1 in step 0, 0.85 in step
    50, 0.99 in step 890.

    `module` is in training mode. What training does not change is not saved: parameters without
    gradient and buffers of layers in evaluation mode. Each attempt has them from the initial
    weights, and `fixed_hash` proves that they are the same.

    With the precision float16 the loss is multiplied by a scale, so that small gradients do not
    become 0 (Micikevicius et al. 2018, arXiv 1710.03740). If a gradient overflows, the step changes
    no weights and the scale is halved; after 2,000 steps without an overflow it is doubled. Workers
    have the same gradients, so they keep the same scale.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        config: TrainConfig,
        steps: int,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self._module, self._config, self._steps = module, config, steps
        is_scaled = precision == torch.float16
        self._optimizer = _torch_optimizer(config, groups, is_scaled=is_scaled)
        self._average = copy.deepcopy(module).requires_grad_(False) if config.ema else None
        self._changing = _changing_names(module)
        device = next(module.parameters()).device
        self._scaler = GradScaler(device.type, enabled=is_scaled)

    def set_steps(self, steps: int) -> None:
        """Let the schedule of the learning rate end after so many steps."""
        self._steps = steps

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        self._optimizer.zero_grad(set_to_none=True)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to derive: scaled if the precision is float16."""
        return self._scaler.scale(loss)

    def step(self, step: int) -> None:
        """Update the weights by their gradients at the learning rate of `step`.

        The gradients are those of the scaled loss, and the same on all workers.
        """
        config = self._config
        lr = config.learning_rate * lr_at_step(config.schedule, config.warmup, step, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

        self._scaler.unscale_(self._optimizer)
        if config.clip_norm:
            clip_grad_norm_(self._parameters(), config.clip_norm)
        with without_compiler():
            self._scaler.step(self._optimizer)
        self._scaler.update()

        if self._average is not None:
            update_ema(self._average, self._module, min(config.ema, (1 + step) / (10 + step)))

    @property
    def learning_rate(self) -> float:
        """Rate of the last step, for parameters whose rate has no factor."""
        group = self._optimizer.param_groups[0]
        return float(group["lr"] / group["lr_scale"])

    @property
    def eval_model(self) -> nn.Module:
        """Module to evaluate and publish: the average if there is one, else the trained module."""
        return self._module if self._average is None else self._average

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors of `eval_model` that training changes."""
        return self._changing_of(self.eval_model)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restore `weights` of `eval_model`; those that training does not change may be missing.

        Raises IntegrityError for the weights of another network.
        """
        _load_changing(self.eval_model, weights, self._changing)

    def fixed_hash(self) -> str:
        """Return the SHA-256 of the tensors that training does not change, "" if there are none."""
        tensors = self._module.state_dict()
        names = sorted(tensors.keys() - self._changing)
        if not names:
            return ""
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
            digest.update(_bytes_of(tensors[name]))
        return digest.hexdigest()

    def _changing_of(self, module: nn.Module) -> dict[str, Tensor]:
        tensors = module.state_dict()
        return {name: tensor for name, tensor in tensors.items() if name in self._changing}

    def state(self) -> dict[str, Tensor]:
        """Return the tensors, besides those of `eval_model`, on which the next step depends.

        `optimizer.<parameter number>.<name>` is the state of a parameter; `module.<name>` are the
        trained weights, if `eval_model` is their average. `scaler.<name>` is the scale of the loss.
        """
        tensors = {
            f"optimizer.{number}.{name}": value
            for number, parameter_state in self._optimizer.state_dict()["state"].items()
            for name, value in parameter_state.items()
            if isinstance(value, Tensor)
        }
        if self._average is not None:
            weights = self._changing_of(self._module)
            tensors |= {f"module.{name}": tensor for name, tensor in weights.items()}
        if self._scaler.is_enabled():
            scaler = self._scaler.state_dict()
            tensors |= {f"scaler.{name}": torch.tensor(scaler[name]) for name in _SCALER_STATE}
        return tensors

    def load(self, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Restore `weights` of `eval_model` and `state` as saved from `state()`.

        Raises IntegrityError for those of another network.
        """
        self.load_weights(weights)
        if self._average is not None:
            _load_changing(self._module, _with_prefix("module.", state), self._changing)

        parameters = self._parameters()
        by_parameter: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix("optimizer.", state).items():
            number, _, key = name.partition(".")
            position = int(number)
            # Fused optimizers would read and write beyond the end of a smaller tensor.
            if position >= len(parameters) or (
                tensor.ndim and tensor.shape != parameters[position].shape
            ):
                raise IntegrityError(
                    f"the checkpoint's {name} does not fit this network: it belongs to another one"
                )
            restored = _with_layout_of(parameters[position], tensor)
            by_parameter.setdefault(position, {})[key] = restored
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})

        # A checkpoint of a GPU with bfloat16 has no scale.
        scaler = {name: value.item() for name, value in _with_prefix("scaler.", state).items()}
        if scaler:
            self._scaler.load_state_dict(self._scaler.state_dict() | scaler)

    def _parameters(self) -> list[Tensor]:
        groups = self._optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"]]


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Set floating-point tensors to decay * average + (1 - decay) * module; copy integers.

    Frozen weights stay bit for bit: the update is a + (1 - decay) * (b - a), which is a if b = a.
    """
    pairs = list(zip(average.state_dict().values(), module.state_dict().values(), strict=True))
    floating = [(mean, new) for mean, new in pairs if mean.is_floating_point()]
    torch._foreach_lerp_([mean for mean, _ in floating], [new for _, new in floating], 1 - decay)

    # Integers are counters, such as BatchNorm's number of batches.
    for mean, new in pairs:
        if not mean.is_floating_point():
            mean.copy_(new)


def _changing_names(module: nn.Module) -> frozenset[str]:
    """Return the names of the tensors in the module's state that training changes."""
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    for path, layer in module.named_modules():
        if layer.training:
            prefix = f"{path}." if path else ""
            names |= {f"{prefix}{name}" for name, _ in layer.named_buffers(recurse=False)}
    return frozenset(names & module.state_dict().keys())


def _load_changing(module: nn.Module, tensors: dict[str, Tensor], changing: frozenset[str]) -> None:
    try:
        wrong = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise IntegrityError(f"a checkpoint has tensors of other shapes: {error}") from error
    if wrong.unexpected_keys or changing.intersection(wrong.missing_keys):
        raise IntegrityError("a checkpoint does not have the tensors of the network")


def _bytes_of(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy()


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name begins with `prefix`, without it."""
    chosen = (name for name in tensors if name.startswith(prefix))
    return {name.removeprefix(prefix): tensors[name] for name in chosen}


def _torch_optimizer(
    config: TrainConfig, groups: list[dict[str, Any]], *, is_scaled: bool
) -> optim.Optimizer:
    lr = config.learning_rate
    if config.optimizer == "sgd":
        # If the first step of a scaled loss overflows, fused SGD leaves its momentum uninitialised.
        return optim.SGD(groups, lr=lr, momentum=_MOMENTUM, nesterov=True, fused=not is_scaled)
    if config.optimizer == "rmsprop":
        return optim.RMSprop(groups, lr=lr, alpha=_RMSPROP_RHO, eps=_RMSPROP_EPS)
    adam = optim.AdamW if config.optimizer == "adamw" else optim.Adam
    return adam(groups, lr=lr, fused=True)


def _with_layout_of(parameter: Tensor, saved: Tensor) -> Tensor:
    """Return `saved` in the parameter's memory format.

    Fused optimizers walk over both as flat memory, so a channels-last parameter needs channels-last
    state. Tensors of another shape, such as step counters, are returned as they are.
    """
    return torch.empty_like(parameter).copy_(saved) if saved.shape == parameter.shape else saved
