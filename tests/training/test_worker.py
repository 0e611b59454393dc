"""Workers: what the regimes train, reproducibility, and equal results for any number of workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from afinar.errors import RequestError, ShortfallError
from afinar.models.networks.network import build_network
from afinar.models.networks.weight_files import StateDict
from afinar.models.networks.weights import find_weights, load_weights
from afinar.storage.arrow import from_parquet
from afinar.storage.objects import ObjectRef, get_object
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.publish import TrainResult, read_result
from afinar.training.task import TrainTask, plan_training
from afinar.training.worker import train
from tests.conftest import Trained
from tests.training.runs import config, rows_by_step, run, run_on


def test_train_learns_the_classes_and_writes_predictions_and_result(
    trained: Trained, tmp_path: Path
) -> None:
    result = run(config(trained, tmp_path, epochs=6))
    assert result.metrics["test"]["top1"] >= 0.9
    assert result.history[-1]["train"]["loss"] < result.history[0]["train"]["loss"]
    assert result.params_trainable == result.params_total
    table = from_parquet(open_store(str(tmp_path)).get("runs/run/test.parquet"))
    labels, predicted = (table.column(name).to_pylist() for name in ("label", "predicted"))
    accuracy = np.mean(np.array(labels) == np.array(predicted))
    assert accuracy == pytest.approx(result.metrics["test"]["top1"])
    assert read_result(plan_training(config(trained, tmp_path), "run")) == result


def test_train_with_the_same_seed_gives_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    one, two, other = (
        run(config(trained, tmp_path / name, epochs=2, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one.weights == two.weights
    assert one.weights != other.weights


def published_and_initial(task: TrainTask, result: TrainResult) -> tuple[StateDict, StateDict]:
    """Return the backbone's tensors as published, and as they were before training."""
    store = open_store(task.config.models)
    published = safetensors.torch.load(get_object(store, ObjectRef(**result.weights)))
    network, whole = build_network(task.architecture)
    source = find_weights("imagenet", "efficientnet_lite0")
    assert source is not None
    load_weights(source, whole, network.backbone)
    prefix = "backbone."
    backbone = {
        name.removeprefix(prefix): tensor
        for name, tensor in published.items()
        if name.startswith(prefix)
    }
    return backbone, network.backbone.state_dict()


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_frozen_regime_keeps_the_backbone_bit_for_bit(
    trained: Trained, tmp_path: Path, augment: str
) -> None:
    """With features computed once (none), and with every batch through the network (flip)."""
    configuration = config(
        trained,
        tmp_path,
        backbone="efficientnet_lite0",
        regime="frozen",
        weights="imagenet",
        epochs=1,
        augment=augment,
    )
    task = plan_training(configuration, "run")
    result = train(task, Group())
    assert 0 < result.params_trainable < 0.01 * result.params_total
    published, initial = published_and_initial(task, result)
    assert published.keys() == initial.keys()
    for name, tensor in initial.items():
        assert torch.equal(published[name], tensor), name


def changed_tensors(task: TrainTask, result: TrainResult) -> set[str]:
    published, initial = published_and_initial(task, result)
    return {name for name, tensor in initial.items() if not torch.equal(published[name], tensor)}


def test_full_regime_changes_weights_and_batchnorm_statistics(
    trained: Trained, tmp_path: Path
) -> None:
    configuration = config(
        trained,
        tmp_path,
        backbone="efficientnet_lite0",
        regime="full",
        weights="imagenet",
        head_init="random",
        epochs=1,
    )
    task = plan_training(configuration, "run")
    kinds = {name.rpartition(".")[2] for name in changed_tensors(task, train(task, Group()))}
    assert {"weight", "bias", "running_mean", "running_var"} <= kinds


def test_last_regime_changes_the_last_stages_only(trained: Trained, tmp_path: Path) -> None:
    """On two workers: the average of BatchNorm statistics must not round those of frozen stages."""
    configuration = config(
        trained,
        tmp_path,
        backbone="efficientnet_lite0",
        regime="last:2",
        weights="imagenet",
        head_init="random",
        epochs=1,
    )
    result = run_on(2, configuration, tmp_path)
    changed = changed_tensors(plan_training(configuration, "run"), result)
    assert {name.split(".")[1] for name in changed} == {"7", "8"}, "of features.0 to features.8"
    assert {"weight", "running_mean"} <= {name.rpartition(".")[2] for name in changed}


def test_losses_and_samples_are_the_same_for_any_number_of_workers(
    trained: Trained, tmp_path: Path
) -> None:
    """SqueezeNet has no BatchNorm, and no dropout before this cut. 9 is not divisible by 2."""
    configuration = config(
        trained,
        tmp_path,
        backbone="squeezenet1_1",
        cut="features.5",
        epochs=3,
        batch_size=9,
        class_weights="balanced",
        label_smoothing=0.1,
        augment="flip,crop:0.3,trivial,erase:0.3,mixup:0.4,cutmix:1",
    )
    one, *others = (
        run_on(
            workers,
            replace(configuration, audit=str(tmp_path / f"audit-{workers}")),
            tmp_path / str(workers),
        )
        for workers in (1, 2, 3)
    )
    assert len(rows_by_step(tmp_path / "audit-1")) >= 20
    for number, other in enumerate(others, 2):
        for row, other_row in zip(one.history, other.history, strict=True):
            assert row["train"]["loss"] == pytest.approx(other_row["train"]["loss"], rel=1e-4)
            assert row["val"]["loss"] == pytest.approx(other_row["val"]["loss"], rel=1e-4)
        assert one.metrics["test"]["loss"] == pytest.approx(other.metrics["test"]["loss"], rel=1e-4)
        assert rows_by_step(tmp_path / f"audit-{number}") == rows_by_step(tmp_path / "audit-1")


def test_batchnorm_network_sees_the_same_samples_on_two_workers(
    trained: Trained, tmp_path: Path
) -> None:
    configuration = config(
        trained,
        tmp_path,
        backbone="mobilenet_v3_small",
        epochs=1,
        batch_size=12,
        sampling="balanced",
    )
    one, two = (
        run_on(
            workers,
            replace(configuration, audit=str(tmp_path / f"audit-{workers}")),
            tmp_path / str(workers),
        )
        for workers in (1, 2)
    )
    assert rows_by_step(tmp_path / "audit-1") == rows_by_step(tmp_path / "audit-2")
    assert one.metrics["test"]["samples"] == two.metrics["test"]["samples"]


def test_infinite_loss_raises_and_publishes_nothing(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ShortfallError, match="not finite"):
        run(config(trained, tmp_path, learning_rate=1e12))
    assert not (tmp_path / "versions").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cut": "nowhere"}, "no node"),
        ({"backbone": "vit_b_16", "input_size": 100}, "--input-size 100"),
        ({"batch_size": 1}, "at least 2"),
    ],
)
def test_impossible_request_raises_in_planning(
    trained: Trained, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        run(config(trained, tmp_path, **options))
