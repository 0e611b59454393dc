"""Networks for explanation: the same logits as published, nothing in place, no hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from afinar import open_model
from afinar.dataset.reader import open_dataset
from afinar.errors import RequestError
from afinar.explain.graphs import (
    disable_in_place,
    leaky_gradients,
    rectifiers_as_modules,
    with_outputs,
)
from afinar.explain.layers import as_maps, map_of, saliency_layer, several_depths
from afinar.explain.network import (
    ExplainedNetwork,
    ModelSpec,
    describe_model,
    find_class,
    imagenet_classes,
    load_explained,
)
from afinar.models.networks.backbones import build_backbone
from tests.conftest import Trained


def plain(backbone: str, size: int = 64) -> ExplainedNetwork:
    return load_explained(ModelSpec(model=f"imagenet:{backbone}", weights="none", input_size=size))


def hooks_of(network: ExplainedNetwork) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for part in network.modules
        for module in part.modules()
    )


def test_probabilities_are_those_of_the_published_model(
    network: ExplainedNetwork, trained: Trained
) -> None:
    images = open_dataset(trained.dataset).read(range(6))
    expected = open_model(trained.champion)(images)
    np.testing.assert_allclose(network.probabilities(images), expected, atol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
def test_logits_are_those_of_the_backbone(backbone: str) -> None:
    torch.manual_seed(0)
    whole = build_backbone(backbone, 64).eval()
    network = plain(backbone)
    pixels = torch.rand(2, 64, 64, 3) * 255
    mean, std = (
        torch.tensor(values) for values in (network.input_view.mean, network.input_view.std)
    )
    with torch.no_grad():
        expected = whole(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
        torch.testing.assert_close(network.logits(pixels), expected, atol=1e-4, rtol=1e-3)


def test_an_activation_before_a_relu_in_place_keeps_its_values() -> None:
    network = plain("resnet18")
    pixels = torch.rand(1, 64, 64, 3) * 255
    (before, after) = network.run(pixels, ("bn1", "relu")).activations
    assert float(before.min().detach()) < 0
    torch.testing.assert_close(after, before.relu())
    # `out += identity` in a residual block must not change the branch either.
    (branch, total) = network.run(pixels, ("layer1.0.bn2", "layer1.0.add")).activations
    assert not torch.equal(branch, total)


def test_functions_in_place_become_modules_out_of_place() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            total = self.layer(images)
            total = F.relu(total, inplace=True)
            total += 1
            return total.mul_(2)

    layers = Functional().eval()
    module = torch.fx.symbolic_trace(layers)
    names = {node.name: f"my.{node.name}" for node in module.graph.nodes}
    renamed = rectifiers_as_modules(module, names)
    disable_in_place(module)
    assert list(renamed.values()) == ["my.relu"]
    images = torch.randn(1, 3, 4, 4)
    nodes = {node.name: node for node in module.graph.nodes}
    output, (before, after) = with_outputs(module, [nodes["layer"], nodes[next(iter(renamed))]])(
        images
    )
    torch.testing.assert_close(after, before.relu())
    torch.testing.assert_close(output, 2 * (after + 1))
    assert float(before.min().detach()) < 0


def test_nothing_is_registered_on_modules() -> None:
    network = plain("resnet18")
    pixels = (torch.rand(1, 64, 64, 3) * 255).requires_grad_(True)
    logits, (activations,) = network.run(pixels, ("layer4.1.relu_1",))
    torch.autograd.grad(logits[0, 3], activations)
    assert hooks_of(network) == 0
    assert all(not parameter.requires_grad for parameter in network.module.parameters())


def test_gradients_pass_a_relu_that_is_dead_for_the_whole_picture() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert isinstance(layers[0], nn.Conv2d) and layers[0].bias is not None
    nn.init.constant_(layers[0].bias, -100.0)
    graph = torch.fx.symbolic_trace(layers)
    module = with_outputs(graph, [])
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    (dead,) = torch.autograd.grad(module(pixels)[0].sum(), pixels)
    assert not dead.any()
    with leaky_gradients([module]):
        output = module(pixels)[0]
        (gradient,) = torch.autograd.grad(output.sum(), pixels)
    assert gradient.any() and not output.any()
    assert isinstance(module.get_submodule("1"), nn.ReLU)


def test_a_live_relu_has_its_own_gradient() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.ReLU())
    pixels = torch.tensor([[-1.0, 2.0], [-3.0, -4.0]], requires_grad=True)
    with leaky_gradients([layers]):
        (gradient,) = torch.autograd.grad(layers(pixels).sum(), pixels)
    assert gradient.tolist() == [[0.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("backbone", "size", "layer", "deepest"),
    [
        ("resnet18", 224, "layer4.1.relu_1", "layer4.1.relu_1"),
        ("resnet18", 128, "layer3.1.relu_1", "layer4.1.relu_1"),
        ("convnext_tiny", 224, "features.7.2.add", "features.7.2.add"),
        # VGG's avgpool repeats 4 x 4 as 7 x 7; Mixed_7a begins with branches of 12 x 12.
        ("vgg11_bn", 128, "features.27", "features.28"),
        ("inception_v3", 224, "Mixed_6e.cat", "Mixed_7c.cat_2"),
        ("vit_b_32", 128, *2 * ["encoder.layers.encoder_layer_10.add_1"]),
    ],
)
def test_the_layer_of_grad_cam(backbone: str, size: int, layer: str, deepest: str) -> None:
    network = plain(backbone, size)
    assert saliency_layer(network) == layer
    depths = several_depths(network)
    assert depths[-1] == deepest
    assert len(depths) == 3
    found = map_of(network.shapes[layer])
    assert found is not None
    (activations,) = network.run(torch.zeros(1, size, size, 3), (layer,)).activations
    assert as_maps(activations, found).shape[2:] == (found.side, found.side)


def test_layouts_of_activations() -> None:
    assert map_of((1, 512, 7, 7)) == ("channels first", 7)
    assert map_of((1, 7, 7, 768)) == ("channels last", 7)
    assert map_of((1, 197, 768)) == ("tokens", 14)
    assert map_of((1, 512, 1, 1)) is None
    assert map_of((1, 512)) is None
    assert map_of((64, 49, 96)) is None  # windows


def test_classes_by_name_number_and_suggestion() -> None:
    classes = imagenet_classes()
    assert len(set(classes)) == 1000
    assert find_class("tabby", classes) == find_class("281", classes) == 281
    with pytest.raises(RequestError, match="Egyptian cat"):
        find_class("cat", classes)
    with pytest.raises(RequestError, match="no node"):
        plain("resnet18").find_node("layer9")


def test_a_spec_is_resolved_before_workers_get_it(trained: Trained) -> None:
    facts = describe_model(ModelSpec(model=f"{trained.models}@latest"))
    assert facts.version is not None
    assert facts.spec.model == f"{trained.models}@{facts.version.id}"
    with pytest.raises(RequestError, match="unknown"):
        describe_model(ModelSpec(model="imagenet:resnet19"))
