"""Ideal pictures of a trained network: certain, also when shifted and saved; smooth; different."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afinar.config.explain import Prior
from afinar.explain.ideal import IdealTask, ascend
from afinar.explain.images import decode_png, structural_similarity
from afinar.explain.network import ExplainedNetwork
from afinar.explain.parametrisation import FourierPicture, SmoothPicture, parametrise


def task(prior: Prior, seed: int = 0, **options: object) -> IdealTask:
    values = {"target": 1, "steps": 64, **options}
    return IdealTask(unit="u", title="moss", prior=prior, seed=seed, **values)  # type: ignore[arg-type]


def test_a_fourier_picture_is_certain_smooth_and_differs_by_seed(
    network: ExplainedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At temperature 1: a model of 12 validation pictures is hardly ever 99 % certain."""
    monkeypatch.setattr(ExplainedNetwork, "temperature", 1.0)
    rendered = [task("fourier", seed).run(network) for seed in range(3)]
    naive = task("none").run(network).result
    assert naive.probability >= 0.99  # that is why its probability says nothing: it is noise
    for entry in rendered:
        assert entry.result.rank == 1
        assert entry.result.probability >= 0.99
        assert entry.result.shifted_probability >= 0.99
        assert entry.result.variation <= 0.5 * naive.variation
        assert len(entry.result.curve) > 10
        assert entry.result.curve[-1][1] > entry.result.curve[0][1]
    first, second, third = (decode_png(entry.pictures["picture.png"]) for entry in rendered)
    pairs = [(first, second), (first, third), (second, third)]
    assert np.mean([structural_similarity(*pair) for pair in pairs]) < 0.9


def test_the_variation_prior_grows_in_octaves(network: ExplainedNetwork) -> None:
    result = task("tv", steps=30).run(network).result
    assert result.rank == 1
    picture = SmoothPicture(64, torch.Generator(), torch.device("cpu"))
    assert picture.picture().shape == (1, 64, 64, 3)
    assert not picture.advance(0.2)
    assert picture.advance(0.9)
    assert picture.parameters()[0].shape[-1] == 64


def test_a_channel_of_a_node(network: ExplainedNetwork) -> None:
    node = network.find_node("3")
    frames, curve = ascend(network, task("fourier", node=node, target=2, steps=20))
    assert curve[-1][1] > curve[0][1]
    assert frames[-1].shape == (64, 64, 3)


def test_transforms_keep_size_and_are_reproducible() -> None:
    for size in (64, 224, 299):
        generator = torch.Generator().manual_seed(1)
        picture = parametrise("fourier", size, generator, torch.device("cpu"))
        assert isinstance(picture, FourierPicture)
        image = picture.picture().detach()
        assert float(image.min()) >= 0 and float(image.max()) <= 255
        seen = [
            picture.transformed(image, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
        ]
        assert seen[0].shape == image.shape
        torch.testing.assert_close(seen[0], seen[1])
        assert not torch.equal(seen[0], seen[2])
