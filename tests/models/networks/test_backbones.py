"""Backbones that torchvision lacks, and older revisions of backbones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from afinar.errors import RequestError
from afinar.features.network import weights_hash
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.network import build_network
from afinar.models.networks.timm_networks import build_timm
from afinar.models.networks.weights import find_weights


def test_small_cnn_has_the_parameter_count_of_the_courses() -> None:
    network = build_backbone("small_cnn", 224)
    convolutions = 3 * 32 * 9 + 32 + 3 * (32 * 32 * 9 + 32)
    assert sum(parameter.numel() for parameter in network.parameters()) == (
        convolutions + (12 * 12 * 32 + 1) * 256 + 257 * 1000
    )


def with_package_weights(name: str, network: nn.Module) -> nn.Module:
    source = find_weights("package", name)
    assert source is not None
    network.load_state_dict(source.load(network), strict=False)
    return network.eval()


@pytest.mark.parametrize("size", [33, 64, 97, 224])
def test_efficientnet_lite0_gives_the_logits_of_timms_network(size: int) -> None:
    name = "timm:tf_efficientnet_lite0"
    expected = with_package_weights(name, build_timm(name, size, classes=1000))
    name = "efficientnet_lite0"
    ours = with_package_weights(name, build_backbone(name, size))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), expected(images), rtol=1e-5, atol=1e-5)


def test_efficientnet_lite0_of_a_record_without_revision_pads_symmetrically() -> None:
    older = Architecture(
        backbone="efficientnet_lite0", cut="features.4", head="linear", input_size=64, classes=3
    )
    padding = {}
    for revision in (1, 2):
        network, _ = build_network(dataclasses.replace(older, revision=revision))
        layers = network.backbone.modules()
        padding[revision] = [
            layer.padding
            for layer in layers
            if isinstance(layer, nn.ZeroPad2d)
            or (isinstance(layer, nn.Conv2d) and layer.stride == (2, 2))
        ]
    assert older.revision == 1
    assert padding[1] == [(1, 1), (1, 1), (2, 2), (1, 1)]
    # Each padding layer (left, right, top, bottom) precedes a convolution without padding.
    assert padding[2] == [
        (0, 1, 0, 1), (0, 0), (0, 1, 0, 1), (0, 0), (1, 2, 1, 2), (0, 0), (0, 1, 0, 1), (0, 0),
    ]  # fmt: skip


def test_cached_features_of_an_older_revision_have_another_key() -> None:
    name = "efficientnet_lite0"
    hashes = {
        weights_hash(with_package_weights(name, build_backbone(name, 64, revision)).state_dict())
        for revision in (1, 2)
    }
    assert len(hashes) == 2


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18"])
def test_a_revision_of_a_later_afinar_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="revision 2 of .*resnet18"):
        build_backbone(name, 64, 2)
