"""Default batch size, epochs and learning rates by backbone, data and workers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.models.networks.catalogue import CATALOGUE
from afinar.training.hyperparameters import is_resolved, resolve


def resolved(samples: int = 1000, workers: int = 1, on_gpu: bool = False, **options: Any) -> Any:
    config = TrainConfig(**{"dataset": "d", "models": "m", "backbone": "resnet18", **options})
    return resolve(config, samples, workers, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("samples", "workers", "on_gpu", "expected"),
    [
        (583, 1, False, 32),
        (30_000, 8, False, 256),
        (583, 8, False, 58),
        (300, 16, False, 64),
        (100_000, 16, True, 1024),
        (20, 1, False, 32),
    ],
)
def test_batch_size_grows_with_the_workers_and_leaves_steps_in_an_epoch(
    samples: int, workers: int, on_gpu: bool, expected: int
) -> None:
    assert resolved(samples, workers, on_gpu).batch_size == expected


def test_more_workers_than_samples_allow_are_refused() -> None:
    with pytest.raises(RequestError, match="fewer --workers"):
        resolved(60, 40)
    with pytest.raises(RequestError, match="smaller --accumulate"):
        resolved(60, 1, batch_size=8, accumulate=8)


@pytest.mark.parametrize(("samples", "epochs"), [(60, 150), (583, 16), (9600, 10)])
def test_epochs_make_at_least_300_steps(samples: int, epochs: int) -> None:
    assert resolved(samples).epochs == epochs


def test_values_that_are_given_stay() -> None:
    given: dict[str, Any] = {
        "batch_size": 48,
        "epochs": 3,
        "learning_rate": 0.5,
        "head_rate": 2.0,
        "layer_decay": 0.9,
    }
    config = resolved(**given)
    assert {name: getattr(config, name) for name in given} == given
    assert is_resolved(config)
    assert not is_resolved(TrainConfig(dataset="d", models="m"))


def test_learning_rate_scales_with_the_batch() -> None:
    small, large = resolved(batch_size=32), resolved(batch_size=128)
    assert large.learning_rate / small.learning_rate == pytest.approx(2)
    small, large = (resolved(batch_size=size, optimizer="sgd") for size in (32, 128))
    assert large.learning_rate / small.learning_rate == pytest.approx(4)


def test_a_random_head_on_a_pretrained_backbone_learns_ten_times_as_fast() -> None:
    assert resolved(regime="last:1").head_rate == 1, "its head is solved"
    assert resolved(regime="last:1", head_init="random").head_rate == 10
    assert resolved(head="mlp").head_rate == 10, "only a linear head can be solved"
    assert resolved(regime="scratch", weights="none").head_rate == 1
    assert resolved(regime="frozen", head_init="random").head_rate == 1


def test_families_have_their_own_rates() -> None:
    rates = {
        name: (config.learning_rate, config.layer_decay)
        for name in ("resnet50", "vgg16", "vgg16_bn", "vit_b_16", "convnext_tiny", "alexnet")
        for config in [resolved(backbone=name)]
    }
    assert rates["resnet50"] == rates["vgg16_bn"]
    assert rates["vgg16"] == rates["alexnet"] != rates["resnet50"]
    assert rates["vit_b_16"] == rates["convnext_tiny"]
    assert rates["vit_b_16"][1] < 1


def test_every_optimizer_has_a_rate_for_every_regime_and_family() -> None:
    for optimizer in ("adamw", "adam", "sgd", "rmsprop"):
        for regime in ("frozen", "last:1", "full", "auto", "scratch"):
            for backbone in ("resnet18", "vgg16", "vit_b_16"):
                options: dict[str, Any] = {
                    "optimizer": optimizer,
                    "regime": regime,
                    "backbone": backbone,
                }
                rate = resolved(**options).learning_rate
                assert 0 < rate < 1
                assert math.isfinite(rate)


def test_every_backbone_belongs_to_a_family() -> None:
    families = {info.family for info in CATALOGUE.values()}
    assert families == {"batchnorm", "plain", "transformer"}
