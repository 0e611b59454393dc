"""Training: order, shares, and what the regimes move."""

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
from afinar.models.networks.weights import State, find_weights, load_weights
from afinar.storage.arrow import from_parquet
from afinar.storage.objects import ObjectRef, get_object
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.publish import TrainOutcome, read_outcome
from afinar.training.rng import uniform
from afinar.training.sampler import epoch_order, global_batches, share
from afinar.training.task import TrainTask, plan_training
from afinar.training.worker import train
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Trained
from tests.training.runs import config, run, run_on, steps_of


@given(
    st.integers(1, 300), st.integers(2, 40), st.integers(1, 5), st.integers(0, 3), st.integers(1, 9)
)
def test_the_workers_shares_are_the_epoch_exactly_once(
    samples: int, batch: int, workers: int, epoch: int, window: int
) -> None:
    shards = np.arange(samples) // 7
    order, windows = epoch_order(shards, 1, epoch, window)
    assert sorted(order) == list(range(samples))
    assert (np.diff(windows) >= 0).all()
    for number in np.unique(windows):
        assert len(np.unique(shards[order[windows == number]])) <= window, (
            "what is shuffled together fits the window"
        )
    batches = global_batches(order, batch)
    assert max(map(len, batches)) <= batch
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    seen = [row for one in batches for rank in range(workers) for row in share(one, rank, workers)]
    assert sorted(seen) == list(range(samples))


def test_order_and_draws_are_functions_of_seed_and_epoch_alone() -> None:
    shards = np.repeat(np.arange(5), 10)

    def order(seed: int, epoch: int, window: int = 2) -> list[int]:
        return list(epoch_order(shards, seed, epoch, window)[0])

    assert order(3, 1) == order(3, 1)
    assert len({tuple(one) for one in (order(3, 1), order(3, 2), order(4, 1), order(3, 1, 5))}) == 4
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000, dtype=np.uint64)
    drawn = uniform(keys, 0, 0, "flip")
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert np.abs(np.histogram(drawn, 20, (0, 1))[0] - 1000).max() < 150, "evenly spread"
    assert abs(np.corrcoef(drawn, uniform(keys, 0, 1, "flip"))[0, 1]) < 0.03
    np.testing.assert_array_equal(uniform(keys[7:9], 0, 0, "flip"), drawn[7:9])
    for other in (
        uniform(keys, 1, 0, "flip"),
        uniform(keys, 0, 1, "flip"),
        uniform(keys, 0, 0, "zoom"),
    ):
        assert (other != drawn).mean() > 0.99


def test_a_small_network_learns_its_classes(trained: Trained, tmp_path: Path) -> None:
    outcome = run(config(trained, tmp_path, epochs=6))
    assert outcome.metrics["test"]["top1"] >= 0.9
    assert outcome.history[-1]["train"]["loss"] < outcome.history[0]["train"]["loss"]
    assert outcome.params_trainable == outcome.params_total
    table = from_parquet(open_store(str(tmp_path)).get("runs/run/test.parquet"))
    right = np.array(table.column("label").to_pylist()) == np.array(
        table.column("predicted").to_pylist()
    )
    assert right.mean() == pytest.approx(outcome.metrics["test"]["top1"])
    assert read_outcome(plan_training(config(trained, tmp_path), "run")) == outcome


def test_the_same_seed_gives_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    one, two, other = (
        run(config(trained, tmp_path / name, epochs=2, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one.weights == two.weights
    assert one.weights != other.weights


def published_and_initial(task: TrainTask, outcome: TrainOutcome) -> tuple[State, State]:
    """The backbone's tensors as published, and as they were before training."""
    store = open_store(task.config.models)
    published = safetensors.torch.load(get_object(store, ObjectRef(**outcome.weights)))
    network, whole = build_network(task.architecture)
    source = find_weights("imagenet", "efficientnet_lite0")
    assert source is not None
    load_weights(source, whole, network.backbone)
    prefix = "backbone."
    ours = {
        name.removeprefix(prefix): one for name, one in published.items() if name.startswith(prefix)
    }
    return ours, network.backbone.state_dict()


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_frozen_means_bit_identical(trained: Trained, tmp_path: Path, augment: str) -> None:
    """BatchNorm's statistics included, with features computed once and with every batch through the network."""
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
    outcome = train(task, Group())
    assert 0 < outcome.params_trainable < 0.01 * outcome.params_total
    published, initial = published_and_initial(task, outcome)
    assert published.keys() == initial.keys()
    for name, tensor in initial.items():
        assert torch.equal(published[name], tensor), name


def moved(task: TrainTask, outcome: TrainOutcome) -> set[str]:
    published, initial = published_and_initial(task, outcome)
    return {name for name, tensor in initial.items() if not torch.equal(published[name], tensor)}


def test_full_moves_weights_and_statistics(trained: Trained, tmp_path: Path) -> None:
    configuration = config(
        trained,
        tmp_path,
        backbone="efficientnet_lite0",
        regime="full",
        weights="imagenet",
        epochs=1,
    )
    task = plan_training(configuration, "run")
    kinds = {name.rpartition(".")[2] for name in moved(task, train(task, Group()))}
    assert {"weight", "bias", "running_mean", "running_var"} <= kinds


def test_the_last_stages_move_and_none_before_them(trained: Trained, tmp_path: Path) -> None:
    """On two workers, whose BatchNorm statistics are averaged: what is frozen must not even be rounded."""
    configuration = config(
        trained,
        tmp_path,
        backbone="efficientnet_lite0",
        regime="last:2",
        weights="imagenet",
        epochs=1,
    )
    outcome = run_on(2, configuration, tmp_path)
    changed = moved(plan_training(configuration, "run"), outcome)
    assert {name.split(".")[1] for name in changed} == {"7", "8"}, "of features.0 to features.8"
    assert {"weight", "running_mean"} <= {name.rpartition(".")[2] for name in changed}


def test_any_number_of_workers_computes_what_one_does(trained: Trained, tmp_path: Path) -> None:
    """SqueezeNet has no BatchNorm, and no dropout before this cut; 21 steps on sizes that no number divides."""
    plain = config(trained, tmp_path, backbone="squeezenet1_1", cut="features.5", epochs=3, batch_size=9,
                   class_weights="balanced", label_smoothing=0.1)  # fmt: skip
    one, *others = (
        run_on(
            workers,
            replace(plain, audit=str(tmp_path / f"audit-{workers}")),
            tmp_path / str(workers),
        )
        for workers in (1, 2, 3)
    )
    assert len(steps_of(tmp_path / "audit-1")) >= 20
    for number, other in enumerate(others, 2):
        for row, its in zip(one.history, other.history, strict=True):
            assert row["train"]["loss"] == pytest.approx(its["train"]["loss"], rel=1e-4)
            assert row["val"]["loss"] == pytest.approx(its["val"]["loss"], rel=1e-4)
        assert one.metrics["test"]["loss"] == pytest.approx(other.metrics["test"]["loss"], rel=1e-4)
        assert steps_of(tmp_path / f"audit-{number}") == steps_of(tmp_path / "audit-1")


def test_with_batchnorm_samples_and_steps_are_the_same_on_two_workers(
    trained: Trained, tmp_path: Path
) -> None:
    plain = config(
        trained,
        tmp_path,
        backbone="mobilenet_v3_small",
        epochs=1,
        batch_size=12,
        class_weights="balanced",
    )
    one, two = (
        run_on(
            workers,
            replace(plain, audit=str(tmp_path / f"audit-{workers}")),
            tmp_path / str(workers),
        )
        for workers in (1, 2)
    )
    assert steps_of(tmp_path / "audit-1") == steps_of(tmp_path / "audit-2")
    assert one.metrics["test"]["samples"] == two.metrics["test"]["samples"]


def test_a_loss_that_is_not_finite_publishes_nothing(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ShortfallError, match="not finite"):
        run(config(trained, tmp_path, learning_rate=1e12))
    assert not (tmp_path / "versions").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cut": "nowhere"}, "no node"),
        ({"backbone": "vit_b_16", "input_size": 100}, "--input-size 100"),
        ({"batch_size": 1}, "at least 2"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused(
    trained: Trained, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        run(config(trained, tmp_path, **options))
