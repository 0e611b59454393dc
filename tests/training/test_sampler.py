"""Order of samples and workers' slices."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from afinar.training.sampler import (
    balanced_draws,
    count_repeats,
    epoch_batches,
    epoch_length,
    epoch_order,
    global_batches,
    rank_slice,
    window_balance,
)


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


@given(st.lists(st.integers(0, 4), min_size=5, max_size=120), st.integers(0, 3))
def test_balanced_draws_use_each_class_equally_often(drawn: list[int], epoch: int) -> None:
    targets = np.array([*drawn, 0, 1, 2, 3, 4])  # every class has a sample
    chosen = balanced_draws(targets, 7, epoch)
    of_class = np.bincount(targets[chosen])
    assert len(set(of_class.tolist())) == 1
    assert len(chosen) == epoch_length(len(targets), 5, "balanced")
    assert 0 <= len(chosen) - len(targets) < 5
    uses = np.bincount(chosen, minlength=len(targets))
    for number in range(5):
        of_number = uses[targets == number]
        assert of_number.max() - of_number.min() <= 1, "samples of a class are used equally often"
    np.testing.assert_array_equal(chosen, balanced_draws(targets, 7, epoch))


def test_balanced_draws_change_with_the_epoch_and_cover_a_large_class_in_time() -> None:
    targets = np.repeat([0, 1], [90, 10])
    epochs = [balanced_draws(targets, 0, epoch) for epoch in range(12)]
    assert len({tuple(chosen.tolist()) for chosen in epochs}) == 12
    assert set(np.concatenate(epochs).tolist()) == set(range(100))


def test_balanced_epoch_is_shuffled_within_windows_and_counts_repetitions() -> None:
    targets, shards = np.repeat([0, 1], [90, 10]), np.arange(100) // 10
    epoch = epoch_order(shards, 0, 0, 2, balanced_draws(targets, 0, 0))
    assert (np.diff(epoch.windows) >= 0).all()
    batches = epoch_batches(epoch, 16)
    pairs = {
        (int(position), int(repeat))
        for batch in batches
        for position, repeat in zip(batch.positions, batch.repeats, strict=True)
    }
    assert len(pairs) == len(epoch.order) == 100, "no pair of sample and repetition occurs twice"
    assert max(repeat for _, repeat in pairs) == 4, "ten pictures are used five times each"
    assert count_repeats(np.array([7, 2, 7, 7])).tolist() == [0, 0, 1, 2]
