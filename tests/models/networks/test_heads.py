"""Heads: pooling and classifiers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from afinar.models.networks.architecture import Architecture
from afinar.models.networks.network import build_network
from tests.models.networks.helpers import (
    architecture,
    count_parameters,
    dense_parameters,
    head_layers,
)


def test_mlp_head_has_the_requested_width_and_dropout() -> None:
    network, _ = build_network(architecture(head="mlp", hidden=7, dropout=0.3, classes=4))
    assert [str(layer) for layer in head_layers(network)] == [
        str(layer) for layer in (nn.Linear(256, 7), nn.ReLU(), nn.Dropout(0.3), nn.Linear(7, 4))
    ]


def test_pooling_averages_or_keeps_all_activations() -> None:
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    average, whole = build_network(architecture(cut="12"))
    flat, _ = build_network(architecture(cut="12", pool="flatten"))
    flat.backbone.load_state_dict(average.backbone.state_dict())
    with torch.no_grad():
        activations = nn.Sequential(*list(whole.eval().children())[:13])(images)
        assert activations.shape == (2, 32, 2, 2)
        torch.testing.assert_close(average.eval().features(images), activations.mean(dim=(2, 3)))
        torch.testing.assert_close(flat.eval().features(images), activations.reshape(2, 128))
    assert flat.classifier.in_features == 128


@pytest.mark.parametrize(
    ("name", "cut", "width"),
    [("swin_t", "norm", 768), ("convnext_tiny", "features.7.2.block.2", 768)],
)
def test_pooling_of_channels_last_activations_averages_over_positions(
    name: str, cut: str, width: int
) -> None:
    architecture = Architecture(backbone=name, cut=cut, head="linear", input_size=224, classes=2)
    assert build_network(architecture)[0].classifier.in_features == 768


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_sigmoid_output_gives_two_logits_with_the_binary_loss(head: str) -> None:
    torch.manual_seed(0)
    network, _ = build_network(architecture(head=head, output="sigmoid"))
    network.eval()
    images = torch.randn(6, 3, 64, 64)
    targets = torch.tensor([0, 1, 1, 0, 1, 0])
    logits = network(images)
    assert logits.shape == (6, 2)
    torch.testing.assert_close(network.classifier(network.features(images)), logits)
    assert not logits[:, 0].any()
    z = logits[:, 1]
    binary = F.binary_cross_entropy_with_logits(z, targets.float())
    torch.testing.assert_close(F.cross_entropy(logits, targets), binary)
    torch.testing.assert_close(logits.softmax(dim=1)[:, 1], z.sigmoid())
    weights = head_layers(network)[-2].weight
    assert weights.shape[0] == 1
    gradient, binary_gradient = (
        torch.autograd.grad(loss, weights, retain_graph=True)[0]
        for loss in (F.cross_entropy(logits, targets), binary)
    )
    torch.testing.assert_close(gradient, binary_gradient)
    assert gradient.abs().max() > 0


def test_linear_head_keeps_the_dropout_before_it() -> None:
    network, whole = build_network(architecture(input_size=224, classes=5))
    dropout = network.backbone.get_submodule("17")
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.5
    assert round(count_parameters(network) / 1e6, 1) == 1.2
    assert count_parameters(network) == count_parameters(whole) - dense_parameters(
        256, 1000
    ) + dense_parameters(256, 5)
