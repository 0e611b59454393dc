"""Exact nearest neighbours by blocks, against brute force in double precision."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from afinar.evaluation import neighbours
from afinar.evaluation.neighbours import (
    Neighbours,
    far_from_all,
    nearest_neighbours,
    nearest_to,
    unit_rows,
)


def brute_force(features: Any, k: int) -> Neighbours:
    """Return the neighbours from the matrix of all distances, in double precision."""
    rows = features.astype(np.float64) - features.astype(np.float64).mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return Neighbours(
        indices=order.astype(np.int32),
        distances=np.take_along_axis(distances, order, axis=1).astype(np.float32),
    )


@pytest.mark.parametrize("block", [7, 64, 4096])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_neighbours_are_those_of_brute_force_whatever_the_block(
    block: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    monkeypatch.setattr(neighbours, "_GATHERED", 500)
    monkeypatch.setattr(neighbours, "_CONVERTED", 50)
    features = np.random.default_rng(0).gamma(1.0, size=(150, 12)).astype(dtype)
    done: list[int] = []
    found = nearest_neighbours(unit_rows(features), 5, done.append)
    wanted = brute_force(features, 5)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.distances, wanted.distances, rtol=1e-4)
    assert sum(done) == 150


def test_distances_of_near_copies_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 512)).astype(np.float32)
    features[1::2] = features[::2] + 3e-4 * rng.normal(size=(25, 512)).astype(np.float32)
    found = nearest_neighbours(unit_rows(features), 1)
    wanted = brute_force(features, 1)
    assert found.distances.max() < 1e-3
    np.testing.assert_allclose(found.distances, wanted.distances, rtol=0.01)


def test_few_and_constant_rows() -> None:
    two = np.array([[1.0, 2.0], [2.0, 1.0]], dtype=np.float32)
    assert nearest_neighbours(unit_rows(two), 10).indices.tolist() == [[1], [0]]
    one = nearest_neighbours(unit_rows(two[:1]), 10)
    assert one.indices.shape == (1, 0)
    assert one.median_distance == 0.0
    assert not far_from_all(one).any()
    same = nearest_neighbours(unit_rows(np.ones((5, 3), dtype=np.float32)), 2)
    assert (same.distances == 0).all()
    assert all(row not in same.indices[row] for row in range(5))


def test_nearest_to_one_row_are_its_neighbours() -> None:
    features = np.random.default_rng(1).normal(size=(300, 20)).astype(np.float16)
    everything = nearest_neighbours(unit_rows(features), 4)
    found = nearest_to(features[17], [features[:10], features[10:10], features[10:]], 5)
    assert found.rows[0] == 17
    assert found.distances[0] == 0
    np.testing.assert_array_equal(found.rows[1:], everything.indices[17])
    np.testing.assert_allclose(found.distances[1:], everything.distances[17], rtol=1e-5)


def test_rows_that_are_not_wanted_are_left_out() -> None:
    features = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    is_wanted = np.arange(50) % 2 == 1
    found = nearest_to(features[4], [features], 100, is_wanted)
    assert sorted(found.rows.tolist()) == list(range(1, 50, 2))
    assert (np.diff(found.distances) >= 0).all()


def test_nearest_to_keeps_digits_of_features_with_a_large_mean() -> None:
    rng = np.random.default_rng(1)
    features = (100 + 0.01 * rng.normal(size=(400, 64))).astype(np.float32)
    found = nearest_to(features[3], [features], 4)
    assert found.rows[0] == 3
    wanted = brute_force(features, 3)
    np.testing.assert_array_equal(found.rows[1:], wanted.indices[3])


def test_median_distance_ignores_copies() -> None:
    features = np.random.default_rng(2).normal(size=(200, 16)).astype(np.float32)
    copied = np.concatenate([features, features])
    plain = nearest_neighbours(unit_rows(features), 10).median_distance
    assert nearest_neighbours(unit_rows(copied), 10).median_distance > 0.8 * plain


def test_only_a_row_far_from_all_is_an_outlier() -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(4, 32))
    features = (centres[rng.integers(0, 4, 400)] + 0.3 * rng.normal(size=(400, 32))).astype("f4")
    assert not far_from_all(nearest_neighbours(unit_rows(features), 10)).any()
    features[123] = 3 * rng.normal(size=32)
    outliers = far_from_all(nearest_neighbours(unit_rows(features), 10))
    assert np.flatnonzero(outliers).tolist() == [123]


def test_estimate_grows_with_the_square_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", 50)
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    units = torch.randn(1000, 8)
    # 20 blocks have 210 products; the clock says one second for each.
    assert neighbours.estimate_s(units, 3) == 210
    assert neighbours.estimate_s(units[:100], 3) == 0
