"""Schedule, parameter groups, clipping and averaged weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from afinar.config.train import TrainConfig
from afinar.errors import IntegrityError
from afinar.training.optim import Optimizer, lr_at_step, update_ema


def test_lr_at_step_rises_in_warmup_then_follows_the_schedule() -> None:
    cosine = [lr_at_step("cosine", 0.2, step, 10) for step in range(10)]
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert all(later < earlier for earlier, later in itertools.pairwise(cosine[2:]))
    assert cosine[6] == pytest.approx(0.5), "half of the steps after warm-up"
    assert [lr_at_step("linear", 0.0, step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert {lr_at_step("constant", 0.0, step, 4) for step in range(4)} == {1.0}


def test_step_scales_the_learning_rate_of_each_group() -> None:
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, 1.0)
    nn.init.constant_(module.bias, 1.0)
    groups = [
        {"params": [module.weight], "weight_decay": 0.0, "lr_scale": 1.0},
        {"params": [module.bias], "weight_decay": 0.0, "lr_scale": 0.5},
    ]
    config = TrainConfig(
        describe=True, optimizer="adam", learning_rate=0.1, schedule="constant", warmup=0.0
    )
    optimizer = Optimizer(module, groups, config, steps=4)
    module(torch.ones(1, 1)).sum().backward()
    optimizer.step(0)
    assert module.weight.item() == pytest.approx(0.9)  # Adam's first step is the rate itself
    assert module.bias.item() == pytest.approx(0.95)


def test_step_with_clip_norm_bounds_the_gradient() -> None:
    module = nn.Linear(1, 1, bias=False)
    config = TrainConfig(
        describe=True,
        optimizer="sgd",
        learning_rate=1.0,
        schedule="constant",
        warmup=0.0,
        clip_norm=0.5,
    )
    groups = [{"params": [module.weight], "weight_decay": 0.0, "lr_scale": 1.0}]
    before = module.weight.item()
    optimizer = Optimizer(module, groups, config, steps=4)
    (100 * module(torch.ones(1, 1)).sum()).backward()
    optimizer.step(0)
    assert before - module.weight.item() == pytest.approx(0.5 * 1.9, rel=1e-4), (
        "Nesterov adds 0.9 of the first step"
    )


def test_update_ema_averages_floats_and_copies_counters() -> None:
    average, module = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    state = module.state_dict()
    state["weight"].fill_(3.0)
    state["num_batches_tracked"].fill_(7)
    unchanged = average.state_dict()["running_mean"].clone()
    update_ema(average, module, decay=0.75)
    averaged = average.state_dict()
    assert averaged["weight"].tolist() == [1.5, 1.5]
    assert int(averaged["num_batches_tracked"]) == 7
    assert torch.equal(averaged["running_mean"], unchanged)


def test_state_of_another_network_is_refused() -> None:
    """A fused optimizer would write beyond the end of its tensors."""

    def optimizer(width: int) -> Optimizer:
        module = nn.Linear(width, 2)
        groups = [{"params": list(module.parameters()), "weight_decay": 0.0, "lr_scale": 1.0}]
        config = TrainConfig(dataset="d", models="m", learning_rate=1e-3)
        return Optimizer(module, groups, config, steps=2)

    small, large = optimizer(4), optimizer(64)
    small.eval_model(torch.ones(1, 4)).sum().backward()
    small.step(0)
    state, weights = small.state(), large.eval_model.state_dict()
    with pytest.raises(IntegrityError, match="belongs to another"):
        large.load(weights, state)
    beyond = {name.replace("optimizer.1", "optimizer.2"): value for name, value in state.items()}
    with pytest.raises(IntegrityError, match="belongs to another"):
        small.load(small.eval_model.state_dict(), beyond)
