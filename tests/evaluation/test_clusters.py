"""Clusters of similar pictures that are predicted badly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from afinar.evaluation.clusters import find_clusters, weak_clusters
from afinar.evaluation.intervals import binomial_tail
from afinar.evaluation.neighbours import nearest_neighbours, unit_rows


def test_a_cluster_with_many_errors_is_found_and_random_errors_are_not() -> None:
    rng = np.random.default_rng(0)
    of_centre = np.repeat(np.arange(6), 60)
    values = rng.normal(size=(6, 24))[of_centre] + 0.2 * rng.normal(size=(360, 24))
    clusters = find_clusters(nearest_neighbours(unit_rows(values.astype(np.float32)), 10))
    # No cluster crosses a gap.
    for name in np.unique(clusters):
        assert len(set(of_centre[clusters == name].tolist())) == 1

    everything = np.ones(360, dtype=bool)
    is_hit = rng.random(360) > 0.05
    assert weak_clusters(clusters, everything, is_hit) == []
    is_hit[(of_centre == 2) & (rng.random(360) < 0.6)] = False
    weak = weak_clusters(clusters, everything, is_hit)
    assert weak
    for cluster in weak:
        assert set(of_centre[cluster.rows].tolist()) == {2}
        assert cluster.accuracy.value < 0.7
    # Pictures without a prediction do not count.
    assert weak_clusters(clusters, of_centre != 2, is_hit) == []


@pytest.mark.parametrize(("errors", "trials"), [(0, 5), (1, 5), (5, 5), (30, 100), (3, 2000)])
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_tail_is_that_of_the_binomial_distribution(errors: int, trials: int, rate: float) -> None:
    wanted = binom.sf(errors - 1, trials, rate)
    assert binomial_tail(errors, trials, rate) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


def test_tail_at_the_ends() -> None:
    assert binomial_tail(1, 5, 0.0) == 0
    assert binomial_tail(1, 5, 1.0) == 1
