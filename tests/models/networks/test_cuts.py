"""Cuts: names of nodes, and the part of a backbone up to one."""

from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import nn

from afinar.errors import RequestError
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.catalogue import CATALOGUE
from afinar.models.networks.cuts import cut_backbone, resolve_cut


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("resnet18", "flatten"),
        ("vgg16", "classifier.5"),
        ("mobilenet_v3_small", "classifier.2"),
        ("squeezenet1_1", "classifier.0"),
        ("inception_v3", "flatten"),
        ("regnet_y_400mf", "flatten"),
        ("vit_b_16", "getitem_5"),
        ("efficientnet_lite0", "classifier.0"),
    ],
)
def test_cut_auto_is_the_input_of_the_classifier(name: str, cut: str) -> None:
    assert resolve_cut(name, "auto", CATALOGUE[name].input_size) == cut


def test_cut_at_a_module_is_its_last_node() -> None:
    assert resolve_cut("inception_v3", "Mixed_6e", 150) == "Mixed_6e.cat"
    assert resolve_cut("resnet18", "layer3", 224) == "layer3.1.relu_1"


def test_cut_unknown_name_suggests_similar_names() -> None:
    with pytest.raises(RequestError, match=r"near it: .*layer4"):
        resolve_cut("resnet18", "layer4.1.relu_9", 224)


def test_cut_backbone_computes_the_activations_of_the_whole_backbone() -> None:
    whole = torchvision.models.resnet18().eval()
    images = torch.randn(2, 3, 64, 64)
    seen: list[torch.Tensor] = []
    whole.layer3.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        whole(images)
        extractor, _ = cut_backbone(whole, "layer3")
        torch.testing.assert_close(extractor.eval()(images), seen[0])
    assert "layer4.0.conv1.weight" not in extractor.state_dict()


def test_cut_backbone_in_train_mode_updates_batch_norm_statistics() -> None:
    extractor, _ = cut_backbone(build_backbone("efficientnet_lite0", 64), "auto")
    extractor.train()
    norm = next(module for module in extractor.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone() if norm.running_mean is not None else torch.empty(0)
    extractor(torch.randn(4, 3, 64, 64))
    assert norm.running_mean is not None
    assert not torch.equal(before, norm.running_mean)
