"""Order of samples and workers' slices."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from afinar.training.sampler import epoch_order, global_batches, rank_slice, window_balance


@given(
    st.integers(1, 300), st.integers(2, 40), st.integers(1, 5), st.integers(0, 3), st.integers(1, 9)
)
def test_rank_slices_of_an_epoch_contain_each_sample_once(
    samples: int, batch_size: int, workers: int, epoch: int, window: int
) -> None:
    shards = np.arange(samples) // 7
    order, windows = epoch_order(shards, 1, epoch, window)
    assert sorted(order) == list(range(samples))
    assert (np.diff(windows) >= 0).all()
    for number in np.unique(windows):
        shards_of_window = np.unique(shards[order[windows == number]])
        assert len(shards_of_window) <= window, "samples are shuffled within one window only"

    batches = global_batches(order, batch_size)
    assert max(map(len, batches)) <= batch_size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    slices = [rank_slice(batch, rank, workers) for batch in batches for rank in range(workers)]
    assert sorted(np.concatenate(slices)) == list(range(samples))


def test_epoch_order_depends_on_seed_epoch_and_window_only() -> None:
    shards = np.repeat(np.arange(5), 10)

    def order(seed: int, epoch: int, window: int = 2) -> tuple[int, ...]:
        return tuple(epoch_order(shards, seed, epoch, window).order.tolist())

    assert order(3, 1) == order(3, 1)
    assert len({order(3, 1), order(3, 2), order(4, 1), order(3, 1, 5)}) == 4


def test_epoch_order_gives_the_documented_example() -> None:
    order, windows = epoch_order(np.repeat(np.arange(4), 2), 0, 0, 2)
    assert order.tolist() == [5, 4, 0, 1, 6, 3, 2, 7]
    assert windows.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_window_balance_is_low_if_shards_hold_one_class_each() -> None:
    targets = np.repeat(np.arange(20), 100)
    by_class = np.repeat(np.arange(40), 50)
    mixed = np.random.default_rng(0).permutation(by_class)
    sorted_shards = epoch_order(by_class, 0, 0, window=4)
    spread_shards = epoch_order(mixed, 0, 0, window=4)
    assert window_balance(sorted_shards, targets) < 0.3
    assert window_balance(spread_shards, targets) > 0.97
