"""Attacks: never outside their bound, successful on a trained model, monotone in the bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afinar.dataset.reader import open_dataset
from afinar.explain.adversarial import Attack, fgsm, pgd
from afinar.explain.adversarial_task import EPSILONS, RobustnessTask
from afinar.explain.images import decode_png, encode_png
from afinar.explain.network import ExplainedNetwork
from afinar.explain.pictures import dataset_inputs, sample_rows
from tests.conftest import Trained


# The network is not changed by an example.
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    epsilon=st.sampled_from([0.5, 1, 2, 3, 8, 40, 255]),
    steps=st.integers(1, 6),
    seed=st.integers(0, 2**16),
    is_targeted=st.booleans(),
    is_extreme=st.booleans(),
)
def test_a_change_never_exceeds_its_bound(
    colours: ExplainedNetwork,
    epsilon: float,
    steps: int,
    seed: int,
    is_targeted: bool,
    is_extreme: bool,
) -> None:
    rng = np.random.default_rng(seed)
    choices = np.array([0, 1, 254, 255]) if is_extreme else np.arange(256)
    images = rng.choice(choices, (2, 64, 64, 3)).astype(np.uint8)
    network = colours
    pixels = network.pixels(images)
    labels = torch.tensor([0, 1])
    targets = 1 - labels if is_targeted else None
    attack = Attack(epsilon=epsilon, steps=steps, restarts=2, seed=seed)
    for found in (
        pgd(network, pixels, labels, targets, attack),
        fgsm(network, pixels, labels, targets, epsilon),
    ):
        assert float((found.pixels - pixels).abs().max()) <= epsilon
        assert float(found.pixels.min()) >= 0 and float(found.pixels.max()) <= 255
        if float(epsilon).is_integer():
            assert torch.equal(found.pixels, found.pixels.round())


def test_targeted_attacks_survive_a_png(network: ExplainedNetwork, trained: Trained) -> None:
    images = open_dataset(trained.dataset).read(range(10))
    labels = torch.from_numpy(network.probabilities(images).argmax(axis=1))
    attack = Attack(epsilon=64, steps=20)  # the classes differ by about 100 levels of colour
    found = pgd(network, network.pixels(images), labels, 1 - labels, attack)
    saved = np.stack(
        [decode_png(encode_png(image.to(torch.uint8).numpy())) for image in found.pixels]
    )
    answers = network.probabilities(saved).argmax(axis=1)
    assert (answers == (1 - labels).numpy()).mean() >= 0.9
    assert found.succeeded.tolist() == (answers == (1 - labels).numpy()).tolist()


def test_a_picture_that_broke_stays_broken(network: ExplainedNetwork, trained: Trained) -> None:
    dataset = open_dataset(trained.dataset)
    sample = tuple(dataset_inputs(dataset, sample_rows(dataset, "", "", 3)))
    labels = tuple(network.classes.index(str(picture.label)) for picture in sample)
    task = RobustnessTask(unit="u", sample=sample, labels=labels, steps=2, restarts=1, seed=0)
    result = task.run(network).result
    assert len(result.broken_at) == 3
    assert set(result.broken_at) <= {None, *EPSILONS}


@pytest.mark.parametrize(("epsilon", "steps", "step"), [(8, 20, 1), (16, 4, 10), (0.5, 20, 0.0625)])
def test_steps_of_a_whole_bound_are_whole_levels(epsilon: float, steps: int, step: float) -> None:
    assert Attack(epsilon=epsilon, steps=steps).step == step
