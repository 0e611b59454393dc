"""Networks to explain: a trained small one, whose two classes differ in colour, and a made one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from afinar.explain.network import ExplainedNetwork, ModelFacts, ModelSpec, load_explained
from afinar.pictures.preprocessing import InputView, StoredView
from tests.conftest import Trained


@pytest.fixture(scope="session")
def network(trained: Trained) -> ExplainedNetwork:
    return load_explained(ModelSpec(model=trained.champion))


@pytest.fixture
def colours() -> ExplainedNetwork:
    """A network that is known by heart: how green a picture is on average, and how red."""
    layers = nn.Sequential(
        nn.Conv2d(3, 2, 8, stride=8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    convolution, linear = layers[0], layers[4]
    assert isinstance(convolution, nn.Conv2d) and isinstance(linear, nn.Linear)
    kernels = torch.tensor([[-1.0, 1, 0], [1, -1, 0]])[..., None, None].expand(-1, -1, 8, 8) / 64
    with torch.no_grad():
        convolution.weight.copy_(kernels)
        linear.weight.copy_(torch.tensor([[9.0, 0], [0, 9], [1, 1]]))
        for layer in (convolution, linear):
            assert layer.bias is not None
            layer.bias.zero_()
    facts = ModelFacts(
        ModelSpec(model="imagenet:colours"), ["moss", "rust", "both"],
        StoredView(size=64, fit="crop"), None,
    )  # fmt: skip
    view = InputView(input_size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    module = torch.fx.symbolic_trace(layers)
    names = {node.name: node.name for node in module.graph.nodes}
    return ExplainedNetwork(facts, module, names, view, None)
