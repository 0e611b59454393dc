"""Golden samples: replay of a published model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afinar.errors import ModelError
from afinar.models.registry.bundle import load_network
from afinar.models.registry.golden import (
    Golden,
    assert_matches_golden,
    compute_logits,
    get_golden,
    redecode,
)
from afinar.models.registry.versions import find_model
from tests.conftest import Trained


def test_golden_replay_of_a_published_model_gives_the_same_logits(trained: Trained) -> None:
    store, version = find_model(trained.champion)
    network = load_network(store, version)
    golden = get_golden(store, version.golden)
    assert len(golden.files) == len(golden.images) == len(golden.logits) > 0
    assert all(golden.files), "the originals are still where they were"
    again = redecode(golden, version.stored_view)
    assert np.array_equal(again.images, golden.images)
    assert assert_matches_golden(again, network, version.input_view) < 1e-5
    assert version.id.startswith("1-")
    assert torch.__version__.startswith(version.lineage["libraries"]["torch"])


def test_golden_replay_with_other_logits_or_images_is_refused(trained: Trained) -> None:
    store, version = find_model(trained.champion)
    network = load_network(store, version)
    golden = get_golden(store, version.golden)
    with torch.no_grad():
        next(iter(network.classifier.parameters())).mul_(1.01)
    with pytest.raises(ModelError, match="other logits"):
        assert_matches_golden(golden, network, version.input_view)
    other = Golden(golden.files, np.zeros_like(golden.images), golden.logits)
    with pytest.raises(ModelError, match="decode differently"):
        redecode(other, version.stored_view)
    invalid = Golden(golden.files, golden.images, np.full_like(golden.logits, np.nan))
    with pytest.raises(ModelError):
        assert_matches_golden(invalid, network, version.input_view)


def test_compute_logits_does_not_depend_on_the_batch(trained: Trained) -> None:
    store, version = find_model(trained.champion)
    network = load_network(store, version)
    images = get_golden(store, version.golden).images
    together = compute_logits(network, images, version.input_view)
    alone = np.concatenate(
        [compute_logits(network, images[i : i + 1], version.input_view) for i in range(len(images))]
    )
    np.testing.assert_allclose(together, alone, atol=1e-4)
