"""Parts of a training by themselves: schedule, averaged weights, reading ahead, the ledger's sentence."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from afinar.config.ingest import IngestConfig
from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.ingest.driver import Ingest
from afinar.storage.cache import Cache
from afinar.training.loading import ShardWindows, load
from afinar.training.optim import Optimizer, follow, lr_at_step
from afinar.training.sampler import epoch_order, global_batches
from afinar.training.timing import Account
from afinar.units.executor import InlineExecutor
from torch import nn

from tests.conftest import many_pictures
from tests.storage.test_cache import RemoteStore


def test_the_rate_rises_and_falls_as_asked() -> None:
    cosine = [lr_at_step("cosine", 0.2, step, 10) for step in range(10)]
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert all(later < earlier for earlier, later in itertools.pairwise(cosine[2:]))
    assert cosine[6] == pytest.approx(0.5), "half way down"
    assert [lr_at_step("linear", 0.0, step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert {lr_at_step("constant", 0.0, step, 4) for step in range(4)} == {1.0}


def test_a_step_moves_each_group_by_its_share_of_the_rate() -> None:
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, 1.0)
    nn.init.constant_(module.bias, 1.0)
    groups = [
        {"params": [module.weight], "weight_decay": 0.0, "factor": 1.0},
        {"params": [module.bias], "weight_decay": 0.0, "factor": 0.5},
    ]
    config = TrainConfig(optimizer="adam", learning_rate=0.1, schedule="constant", warmup=0.0)
    Optimizer(module, groups, config, steps=4).step(module(torch.ones(1, 1)).sum(), 0)
    assert module.weight.item() == pytest.approx(0.9)  # Adam's first step is the rate itself
    assert module.bias.item() == pytest.approx(0.95)


def test_clipping_bounds_the_gradient() -> None:
    module = nn.Linear(1, 1, bias=False)
    config = TrainConfig(
        optimizer="sgd", learning_rate=1.0, schedule="constant", warmup=0.0, clip_norm=0.5
    )
    groups = [{"params": [module.weight], "weight_decay": 0.0, "factor": 1.0}]
    before = module.weight.item()
    Optimizer(module, groups, config, steps=4).step(100 * module(torch.ones(1, 1)).sum(), 0)
    assert before - module.weight.item() == pytest.approx(0.5 * 1.9, rel=1e-4), (
        "Nesterov adds 0.9 of the first step"
    )


def test_averaged_weights_follow_and_counters_are_copied() -> None:
    average, module = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    state = module.state_dict()
    state["weight"].fill_(3.0)
    state["num_batches_tracked"].fill_(7)
    frozen = average.state_dict()["running_mean"].clone()
    follow(average, module, keep=0.75)
    found = average.state_dict()
    assert found["weight"].tolist() == [1.5, 1.5]
    assert int(found["num_batches_tracked"]) == 7
    assert torch.equal(found["running_mean"], frozen)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_come_in_order_whoever_gathers_them(threads: int) -> None:
    found = list(load(lambda number: number * number, range(50), threads))
    assert found == [(number, number * number) for number in range(50)]


def test_reading_ahead_stops_when_nobody_wants_more() -> None:
    asked: list[int] = []
    reading = load(asked.append, range(1000), 2)
    next(reading)
    reading.close()
    assert len(asked) < 20
    assert threading.active_count() < 50


def test_an_error_in_gathering_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        list(load(lambda number: 1 // number, [1, 0, 1], 2))


def test_shards_are_fetched_a_window_ahead_and_the_cache_stays_bounded(tmp_path: Path) -> None:
    source = many_pictures(tmp_path / "pictures", 400)
    config = IngestConfig(source=str(source), dataset=str(tmp_path / "dataset"), size=32)
    Ingest(config, InlineExecutor()).run()
    local = open_dataset(config.dataset)
    assert len(local.shards) >= 6
    largest = max(ref.bytes for ref in local.shards)
    store = RemoteStore(config.dataset)
    dataset = Dataset(store, local.manifest, Cache(tmp_path / "cache", 4 * largest))
    rows = np.arange(len(dataset.index))
    windows = ShardWindows.of(dataset, rows, 2 * largest)
    assert windows.size == 2
    order, of = epoch_order(windows.shards, 0, 0, windows.size)
    batches = global_batches(order, 10)
    with windows.ahead(order, of, batches) as enter:
        for number, batch in enumerate(batches):
            enter(number)
            np.testing.assert_array_equal(dataset.read(batch), local.read(batch))
    fetched = [
        line
        for line in Path(store.root, "reads").read_text().splitlines()
        if line.startswith("shards/")
    ]
    assert sorted(fetched) == [ref.path for ref in local.shards], "each shard once"
    kept = [
        path.stat().st_size
        for path in (tmp_path / "cache").iterdir()
        if not path.name.startswith("lock-")
    ]
    assert sum(kept) <= 4 * largest


def test_the_ledger_says_what_the_limit_is() -> None:
    spent = {
        "first_batch_s": 0.1,
        "copy_s": 0.0,
        "augment_s": 0.0,
        "prepare_s": 0.1,
        "seconds": 10.0,
        "steps": 5,
    }
    assert "arithmetic is the limit" in Account(waiting_s=0.1, compute_s=9.0, **spent).limit  # type: ignore[arg-type]
    waits = Account(waiting_s=6.0, compute_s=3.0, **spent)  # type: ignore[arg-type]
    assert waits.limit.startswith("Waiting for data is the limit")
    slowed = Account(waiting_s=2.0, compute_s=7.0, **spent)  # type: ignore[arg-type]
    assert slowed.limit.startswith("Waiting for data slows it")
