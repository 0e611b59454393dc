"""Stages: grouping of layers, freezing, and learning rates."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from afinar.config.train import Head
from afinar.errors import RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.backbones import build_backbone, meta_device_context
from afinar.models.networks.catalogue import CATALOGUE
from afinar.models.networks.cuts import cut_backbone
from afinar.models.networks.network import Network, build_network
from afinar.models.networks.stages import (
    batch_statistics,
    find_stages,
    freeze,
    parameter_groups,
    set_training,
    trained_norms,
)


def cut_of(name: str, cut: str = "auto") -> fx.GraphModule:
    with meta_device_context(name):
        return cut_backbone(build_backbone(name, CATALOGUE[name].input_size), cut)[0]


def network_of(name: str, size: int, head: Head = "linear", cut: str = "auto") -> Network:
    return build_network(
        Architecture(backbone=name, cut=cut, head=head, input_size=size, classes=3)
    )[0]


@pytest.mark.parametrize(
    ("name", "cut", "names"),
    [
        ("resnet18", "auto", "conv1 layer1 layer2 layer3 layer4"),
        ("resnet18", "layer2", "conv1 layer1.0 layer1.1 layer2.0 layer2.1"),
        ("resnet18", "relu", "conv1"),
        ("resnet18", "conv1", "conv1"),
        ("vgg16_bn", "features.12", "features.0 features.3 features.7 features.10"),
        ("densenet121", "auto",
         "features.conv0 features.denseblock1 features.transition1 features.denseblock2 "
         "features.transition2 features.denseblock3 features.transition3 features.denseblock4"),
        ("convnext_tiny", "auto", " ".join(f"features.{number}" for number in range(8))),
        ("swin_t", "auto", " ".join(f"features.{number}" for number in range(8))),
        ("vit_b_16", "auto", "conv_proj "
         + " ".join(f"encoder.layers.encoder_layer_{n}" for n in range(12))),
        ("regnet_y_400mf", "auto", "stem.0 "
         + " ".join(f"trunk_output.block{number}" for number in (1, 2, 3, 4))),
        ("shufflenet_v2_x1_0", "auto", "conv1 stage2 stage3 stage4 conv5"),
        ("maxvit_t", "auto", "stem.0 stem.1 blocks.0 blocks.1 blocks.2 blocks.3 classifier.3"),
        ("small_cnn", "auto", "0 3 7 10 15"),
    ],
)  # fmt: skip
def test_stages_are_the_usual_parts_of_the_backbone(name: str, cut: str, names: str) -> None:
    assert [stage.name for stage in find_stages(cut_of(name, cut))] == names.split()


@pytest.mark.parametrize(
    "name",
    [
        "resnet50", "vgg16", "inception_v3", "googlenet", "densenet121", "mobilenet_v2",
        "efficientnet_lite0", "squeezenet1_1", "mnasnet1_0", "convnext_tiny", "swin_v2_t",
        "vit_b_16", "maxvit_t", "regnet_y_400mf", "shufflenet_v2_x1_0", "small_cnn",
    ],
)  # fmt: skip
def test_stages_contain_every_parameter_and_layer_exactly_once(name: str) -> None:
    backbone = cut_of(name)
    stages = find_stages(backbone)
    assert len(stages) >= 4
    parameters = [parameter for stage in stages for parameter in stage.parameters]
    assert sorted(parameters) == sorted(name for name, _ in backbone.named_parameters())
    called = {str(node.target) for node in backbone.graph.nodes if node.op == "call_module"}
    assert sorted(module for stage in stages for module in stage.modules) == sorted(called)
    for stage in stages:
        assert any(backbone.get_parameter(parameter).ndim > 1 for parameter in stage.parameters), (
            stage.name
        )


def test_tokens_and_last_normalisation_join_neighbouring_stages() -> None:
    first, *_, last = find_stages(cut_of("vit_b_16"))
    assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} <= set(first.parameters)
    assert {"encoder.ln.weight", "encoder.layers.encoder_layer_11.mlp.3.bias"} <= set(
        last.parameters
    )


def test_freeze_keeps_last_stages_and_classifier_trainable() -> None:
    network = network_of("resnet18", 32)
    for trainable, wanted in (
        (0, {"classifier"}),
        (1, {"layer4", "classifier"}),
        (2, {"layer3", "layer4", "classifier"}),
        (None, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "classifier"}),
    ):
        freeze(network, trainable)
        training = {
            name for name, parameter in network.named_parameters() if parameter.requires_grad
        }
        assert {name.removeprefix("backbone.").split(".")[0] for name in training} == wanted
    with pytest.raises(RequestError, match=r"5 stages \(conv1, layer1, layer2, layer3, layer4\)"):
        freeze(network, 6)


def test_batch_norm_statistics_change_only_in_trained_stages() -> None:
    torch.manual_seed(0)
    network = network_of("resnet18", 32)
    freeze(network, 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    set_training(network)
    network(torch.randn(8, 3, 32, 32)).sum().backward()
    statistics = [name for name in before if "running_" in name]
    moved = {
        name for name in statistics if not torch.equal(network.state_dict()[name], before[name])
    }
    assert moved == {name for name in statistics if name.startswith("backbone.layer4.")}
    assert {
        name for name, parameter in network.named_parameters() if parameter.grad is not None
    } == {
        name
        for name, _ in network.named_parameters()
        if name.startswith(("backbone.layer4.", "classifier."))
    }


def test_dropout_is_active_only_in_trained_stages() -> None:
    network = network_of("small_cnn", 64, head="mlp")
    active: dict[int | None, list[str]] = {}
    for trainable in (0, 1, None):
        freeze(network, trainable)
        set_training(network)
        active[trainable] = [
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Dropout) and module.training
        ]
    assert active == {
        0: ["classifier.2"],
        1: ["backbone.17", "classifier.2"],
        None: ["backbone.6", "backbone.13", "backbone.17", "classifier.2"],
    }


def test_set_training_after_eval_restores_the_same_modes() -> None:
    network = network_of("efficientnet_lite0", 64)
    freeze(network, 2)
    modes = []
    for _ in range(2):
        set_training(network)
        modes.append({name: module.training for name, module in network.named_modules()})
        network.eval()
    assert modes[0] == modes[1]
    assert modes[0]["backbone.features.8.1"]
    assert not modes[0]["backbone.features.6.0.block.0.1"]


def test_parameter_groups_scale_falls_with_distance_from_classifier() -> None:
    network = network_of("resnet18", 32)
    freeze(network, 3)
    groups = parameter_groups(network, 0.1, 0.5)
    assert [(group["name"], group["lr_scale"], group["weight_decay"]) for group in groups] == [
        ("layer2", 0.125, 0.1), ("layer2 (no decay)", 0.125, 0.0),
        ("layer3", 0.25, 0.1), ("layer3 (no decay)", 0.25, 0.0),
        ("layer4", 0.5, 0.1), ("layer4 (no decay)", 0.5, 0.0),
        ("classifier", 1.0, 0.1), ("classifier (no decay)", 1.0, 0.0),
    ]  # fmt: skip
    names = {parameter: name for name, parameter in network.named_parameters()}
    undecayed = {
        names[parameter]
        for group in groups
        if not group["weight_decay"]
        for parameter in group["params"]
    }
    assert {
        "backbone.layer4.1.bn2.weight",
        "backbone.layer4.1.bn2.bias",
        "classifier.bias",
    } <= undecayed
    assert "backbone.layer4.1.conv2.weight" not in undecayed


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
@pytest.mark.parametrize("trainable", [None, 0, 2])
def test_parameter_groups_contain_each_trainable_parameter_once(
    layer_decay: float, trainable: int | None
) -> None:
    network = network_of("vit_b_16", 224, cut="encoder.layers.encoder_layer_1")
    freeze(network, trainable)
    groups = parameter_groups(network, 0.01, layer_decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {
        id(parameter) for parameter in network.parameters() if parameter.requires_grad
    }
    if layer_decay == 1:
        # The order of earlier releases, whose checkpoints number the parameters.
        assert [group["name"] for group in groups] == ["network", "network (no decay)"]
        assert {group["lr_scale"] for group in groups} == {1.0}
    torch.optim.AdamW(groups, lr=1e-3)


def test_head_rate_scales_the_classifier_alone() -> None:
    network = network_of("resnet18", 64)
    groups = parameter_groups(network, 0.01, 0.5, head_rate=10.0)
    scales = {group["name"]: group["lr_scale"] for group in groups}
    assert scales["classifier"] == scales["classifier (no decay)"] == 10.0
    assert scales["layer4"] == 0.5
    assert scales["layer3"] == 0.25


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        ("vit_b_16", {"class_token", "pos_embedding"}),
        ("swin_t", {"relative_position_bias_table"}),
        ("convnext_tiny", {"layer_scale"}),
    ],
)
def test_embeddings_and_tokens_have_no_weight_decay(backbone: str, names: set[str]) -> None:
    network = network_of(backbone, 224)
    groups = parameter_groups(network, 0.01, 1.0)
    undecayed = {
        id(parameter)
        for group in groups
        if not group["weight_decay"]
        for parameter in group["params"]
    }
    found = {
        name.rpartition(".")[2]: id(parameter) in undecayed
        for name, parameter in network.named_parameters()
        if name.rpartition(".")[2] in names
    }
    assert found == dict.fromkeys(names, True)


def test_batch_statistics_are_those_of_training_and_change_nothing() -> None:
    torch.manual_seed(0)
    network = network_of("resnet18", 32)
    images = 3 + torch.randn(8, 3, 32, 32)
    freeze(network, 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with batch_statistics(network):
        features = network.features(images)
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
    assert not torch.allclose(features, network.features(images), rtol=0.1), "running statistics"

    set_training(network)
    assert torch.equal(features, network.features(images))
    moved = [name for name in before if not torch.equal(network.state_dict()[name], before[name])]
    assert moved, "training goes on to collect running statistics"


def test_no_statistics_of_batches_without_batch_norm_that_trains() -> None:
    frozen, plain = network_of("resnet18", 32), network_of("squeezenet1_1", 64)
    freeze(frozen, 0)
    assert trained_norms(frozen) == trained_norms(plain) == []
