"""Maps: what they point at, their checks, and the sanity check with a random head."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import spearmanr

from afinar.explain.images import (
    colour_map,
    normalized,
    structural_similarity,
    total_variation,
)
from afinar.explain.layers import saliency_layer
from afinar.explain.network import ExplainedNetwork
from afinar.explain.saliency import (
    deletion_score,
    grad_cam,
    integrated_gradients,
    occlusion,
    rank_correlation,
)
from tests.conftest import TINTS


def patch(seed: int = 0, *, at: int = 36) -> np.ndarray:
    """Return a rust-coloured picture with a patch of moss, the rest of its sides in rust."""
    rng = np.random.default_rng(seed)
    image = np.empty((64, 64, 3))
    image[:] = TINTS["rust"]
    image[at : at + 24, at : at + 24] = TINTS["moss"]
    return np.clip(image + rng.integers(-40, 40, image.shape), 0, 255).astype(np.uint8)


def mass_inside(values: np.ndarray, at: int = 36) -> float:
    return float(values[at : at + 24, at : at + 24].sum() / values.sum())


def test_maps_point_at_the_part_that_has_the_class(colours: ExplainedNetwork) -> None:
    image, moss = patch(), torch.tensor([0])
    layer = saliency_layer(colours)
    assert layer == "_1"
    (cam,) = grad_cam(colours, image[None], moss, layer)
    assert mass_inside(cam.values) > 0.6  # bilinear enlargement spreads the rest
    assert mass_inside(occlusion(colours, image, moss).values) > 0.5
    assert mass_inside(integrated_gradients(colours, image, moss).values) > 0.6


def test_blurring_the_hottest_part_counts_more_than_elsewhere(colours: ExplainedNetwork) -> None:
    image = patch(at=24)
    (cam,) = grad_cam(colours, image[None], torch.tensor([1]), "_1")
    assert mass_inside(cam.values, at=24) < 0.1
    (cam,) = grad_cam(colours, image[None], torch.tensor([0]), "_1")
    score = deletion_score(colours, image, 0, cam.values)
    assert score.hottest < score.random < score.confidence
    assert score == deletion_score(colours, image, 0, cam.values)


def test_a_class_that_nothing_supports_has_a_blank_map(colours: ExplainedNetwork) -> None:
    image = np.full((64, 64, 3), TINTS["rust"], np.uint8)
    (cam,) = grad_cam(colours, image[None], torch.tensor([0]), "_1")
    assert cam.is_blank and not cam.values.any()
    assert occlusion(colours, image, torch.tensor([0])).is_blank


def test_a_random_head_gives_another_map(colours: ExplainedNetwork) -> None:
    image = np.concatenate([patch(at=0)[:, :32], patch(at=30)[:, 32:]], axis=1)
    (before,) = grad_cam(colours, image[None], torch.tensor([0]), "_1")
    correlations = []
    weight = colours.module.get_parameter("4.weight")
    published = weight.clone()
    for seed in range(8):
        colours.randomize_head(seed)
        assert not torch.equal(weight, published)
        (after,) = grad_cam(colours, image[None], torch.tensor([0]), "_1")
        correlations.append(rank_correlation(before.values, after.values))
    assert np.mean(correlations) < 0.5


def test_integrated_gradients_add_up_to_the_score(network: ExplainedNetwork) -> None:
    found = integrated_gradients(network, patch(), torch.tensor([0]))
    assert found.error is not None and found.error < 0.02
    assert found.values.shape == (64, 64)
    assert found.values.min() >= 0 and found.values.max() <= 1


def test_a_shallow_node_uses_a_weight_for_each_position(network: ExplainedNetwork) -> None:
    node = network.find_node("0")
    assert network.shapes[node][-1] >= 15
    (found,) = grad_cam(network, patch()[None], torch.tensor([0]), node)
    assert found.values.shape == (64, 64)


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    first = rng.random((14, 14), dtype=np.float32)
    second = (first + rng.random((14, 14), dtype=np.float32)).round(1)
    expected = spearmanr(first.ravel(), second.ravel()).statistic
    assert abs(rank_correlation(first, second) - expected) < 1e-6
    assert rank_correlation(first, np.zeros_like(first)) == 0


def test_measures_of_pictures() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    flat = np.full_like(noise, 90)
    assert structural_similarity(noise, noise) == 1
    assert structural_similarity(noise, noise[::-1].copy()) < 0.2
    assert total_variation(flat) == 0
    assert total_variation(noise) > 0.2
    assert not normalized(np.ones((2, 2), np.float32)).any()
    assert colour_map(np.array([[0.0, 1.0]], np.float32)).tolist() == [
        [[13, 8, 60], [250, 245, 160]]
    ]
