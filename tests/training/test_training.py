"""Training: order, shares, and what the regimes move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.tables import from_parquet
from pipeline.errors import RequestError, ShortfallError
from pipeline.models.network import build_network
from pipeline.models.weights import find_weights, load_weights
from pipeline.storage.store import open_store
from pipeline.training.draws import uniform
from pipeline.training.group import Group
from pipeline.training.job import train
from pipeline.training.order import epoch_order, global_batches, share
from pipeline.training.publishing import read_outcome
from pipeline.training.task import plan_training
from tests.conftest import Trained
from tests.training.runs import config, run, run_on


@given(st.integers(1, 300), st.integers(2, 40), st.integers(1, 5), st.integers(0, 3), st.integers(1, 9))
def test_the_workers_shares_are_the_epoch_exactly_once(
    samples: int, batch: int, workers: int, epoch: int, window: int
) -> None:
    shards = np.arange(samples) // 7
    order, windows = epoch_order(shards, 1, epoch, window)
    assert sorted(order) == list(range(samples))
    assert (np.diff(windows) >= 0).all()
    for number in np.unique(windows):
        assert len(np.unique(shards[order[windows == number]])) <= window, "what is shuffled together fits the window"
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
    for other in (uniform(keys, 1, 0, "flip"), uniform(keys, 0, 1, "flip"), uniform(keys, 0, 0, "zoom")):
        assert (other != drawn).mean() > 0.99


def test_a_small_network_learns_its_classes(trained: Trained, tmp_path: Path) -> None:
    outcome = run(config(trained, tmp_path, epochs=6))
    assert outcome.metrics["test"]["top1"] >= 0.9
    assert outcome.history[-1]["train"]["loss"] < outcome.history[0]["train"]["loss"]
    assert outcome.params_trainable == outcome.params_total
    table = from_parquet(open_store(str(tmp_path)).get("runs/run/test.parquet"))
    right = np.array(table.column("label").to_pylist()) == np.array(table.column("predicted").to_pylist())
    assert right.mean() == pytest.approx(outcome.metrics["test"]["top1"])
    assert read_outcome(plan_training(config(trained, tmp_path), "run")) == outcome


def test_the_same_seed_gives_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    one, two, other = (
        run(config(trained, tmp_path / name, epochs=2, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one.weights == two.weights
    assert one.weights != other.weights


def test_frozen_means_bit_identical(trained: Trained, tmp_path: Path) -> None:
    configuration = config(
        trained, tmp_path, backbone="efficientnet_lite0", regime="frozen", weights="imagenet", epochs=2
    )
    task = plan_training(configuration, "run")
    outcome = train(task, Group())
    assert 0 < outcome.params_trainable < 0.01 * outcome.params_total

    import safetensors.torch

    from pipeline.storage.objects import ObjectRef, get_object

    published = safetensors.torch.load(get_object(open_store(str(tmp_path)), ObjectRef(**outcome.weights)))
    network, whole = build_network(task.architecture)
    source = find_weights("imagenet", "efficientnet_lite0")
    assert source is not None
    load_weights(source, whole, network.backbone)
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(published[f"backbone.{name}"], tensor), name


def test_full_moves_weights_and_statistics(trained: Trained, tmp_path: Path) -> None:
    configuration = config(
        trained, tmp_path, backbone="efficientnet_lite0", regime="full", weights="imagenet", epochs=1
    )
    task = plan_training(configuration, "run")
    outcome = train(task, Group())

    import safetensors.torch

    from pipeline.storage.objects import ObjectRef, get_object

    published = safetensors.torch.load(get_object(open_store(str(tmp_path)), ObjectRef(**outcome.weights)))
    network, whole = build_network(task.architecture)
    source = find_weights("imagenet", "efficientnet_lite0")
    assert source is not None
    load_weights(source, whole, network.backbone)
    moved = {
        name.split(".")[-1]
        for name, tensor in network.backbone.state_dict().items()
        if not torch.equal(published[f"backbone.{name}"], tensor)
    }
    assert {"weight", "bias", "running_mean", "running_var"} <= moved


def test_two_workers_compute_what_one_does(trained: Trained, tmp_path: Path) -> None:
    """VGG without dropout or BatchNorm in reach: cut at its convolutions, on sizes not divisible by two."""
    configuration = config(trained, tmp_path, backbone="squeezenet1_1", cut="features.5", epochs=2, batch_size=9)
    one, two = (run_on(workers, configuration, tmp_path / str(workers)) for workers in (1, 2))
    for row, other in zip(one.history, two.history, strict=True):
        assert row["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)
        assert row["val"]["loss"] == pytest.approx(other["val"]["loss"], rel=1e-4)
    assert one.metrics["test"]["loss"] == pytest.approx(two.metrics["test"]["loss"], rel=1e-4)


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
