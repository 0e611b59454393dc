"""Heads, pooling, and the recipes' networks counted by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from afinar.config.recipes import load_recipe
from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.models.networks.describe import describe_network
from afinar.models.networks.network import BinaryLogits, Network, build_network
from afinar.models.registry.versions import Architecture
from torch import nn
from torch.nn import functional as F

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "recipes"


def architecture(**options: Any) -> Architecture:
    values: dict[str, Any] = {
        "backbone": "small_cnn",
        "cut": "auto",
        "head": "linear",
        "input_size": 64,
        "classes": 2,
    }
    return Architecture(**{**values, **options})


def layers(network: Network) -> list[Any]:
    return list(network.classifier.children())


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def recipe(name: str) -> TrainConfig:
    return TrainConfig(
        **{
            "dataset": "dataset",
            "models": "models",
            **load_recipe(TrainConfig, str(RECIPES / name)),
        }
    )


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def inception_to_mixed_6e() -> nn.Module:
    with torch.device("meta"):
        whole = zoo.inception_v3(aux_logits=False, init_weights=False)
    names = [name for name, _ in whole.named_children()]
    return nn.Sequential(
        *(whole.get_submodule(name) for name in names[: names.index("Mixed_6e") + 1])
    )


def by_hand(name: str, classes: int) -> tuple[int, int]:
    """Parameters of a recipe's network, all and trained, from torchvision's own definitions."""
    with torch.device("meta"):
        if name == "vgg16-flatten.toml":
            body, head = count(zoo.vgg16().features), dense(512 * 7 * 7, classes)
        elif name == "vgg16-fc2.toml":
            vgg = zoo.vgg16()
            body, head = count(vgg.features, vgg.classifier[:5]), dense(4096, classes)
        elif name == "resnet50-extractor.toml":
            resnet = zoo.resnet50()
            body, head = count(resnet) - count(resnet.fc), dense(2048, classes)
        elif name == "mobilenet-extractor.toml":
            body, head = count(zoo.mobilenet_v2().features), dense(1280, classes)
        elif name == "train-frozen.toml":
            resnet = zoo.resnet18()
            body, head = count(resnet) - count(resnet.fc), dense(512, classes)
        elif name == "inception-mixed6e.toml":
            body, head = count(inception_to_mixed_6e()), dense(768 * 7 * 7, 1024) + dense(1024, 1)
        else:
            convolutions = 3 * 32 * 9 + 32 + 3 * (32 * 32 * 9 + 32)
            body, head = convolutions + dense(12 * 12 * 32, 256), dense(256, classes)
            return body + head, body + head
    return body + head, head


TRAINING = sorted(
    path.name for path in RECIPES.glob("*.toml") if not path.name.startswith("ingest")
)


@pytest.mark.parametrize("name", TRAINING)
def test_a_recipes_network_has_the_parameters_counted_by_hand(name: str) -> None:
    config = recipe(name)
    classes = 2 if config.output == "sigmoid" else 5
    found = describe_network(config, classes)
    assert (found["params_total"], found["params_trainable"]) == by_hand(name, classes)


def test_the_courses_networks_have_recipes() -> None:
    assert {
        "vgg16-flatten.toml", "vgg16-fc2.toml", "resnet50-extractor.toml", "mobilenet-extractor.toml",
        "inception-mixed6e.toml", "train-scratch.toml",
    } <= set(TRAINING)  # fmt: skip
    for name in TRAINING:
        recipe(name)
        assert (RECIPES / name).read_text().startswith("# Course practice")


def test_inception_cut_in_its_middle_has_the_courses_width() -> None:
    config = recipe("inception-mixed6e.toml")
    fields = set(Architecture.__dataclass_fields__) - {"classes"}
    options = {field: getattr(config, field) for field in fields}
    with torch.device("meta"):
        network, _ = build_network(architecture(**options))
    hidden, _, dropout, last, one = layers(network)
    assert (hidden.in_features, hidden.out_features, last.out_features) == (37632, 1024, 1)
    assert dropout.p == 0.2
    assert isinstance(one, BinaryLogits)


def test_a_hidden_layer_is_as_wide_as_asked() -> None:
    network, _ = build_network(architecture(head="mlp", hidden=7, dropout=0.3, classes=4))
    assert [str(layer) for layer in layers(network)] == [
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


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_one_sigmoid_is_two_logits_with_its_binary_loss(head: str) -> None:
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
    weights = layers(network)[-2].weight
    assert weights.shape[0] == 1
    ours, theirs = (
        torch.autograd.grad(loss, weights, retain_graph=True)[0]
        for loss in (F.cross_entropy(logits, targets), binary)
    )
    torch.testing.assert_close(ours, theirs)
    assert ours.abs().max() > 0


def test_one_sigmoid_needs_two_classes() -> None:
    with pytest.raises(RequestError, match="--output sigmoid"):
        architecture(output="sigmoid", classes=3)


def test_an_older_record_of_an_architecture_still_builds() -> None:
    record = {"backbone": "small_cnn", "cut": "16", "head": "mlp", "input_size": 64, "classes": 3}
    older = Architecture(**record)  # type: ignore[arg-type]
    network, _ = build_network(older)
    assert set(network.state_dict()) == {
        *(f"backbone.{layer}.{kind}" for layer in (0, 3, 7, 10, 15) for kind in ("weight", "bias")),
        *(f"classifier.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")),
    }
    assert layers(network)[0].out_features == 256
    assert Architecture(**older.as_dict()) == older
    linear, _ = build_network(dataclasses.replace(older, head="linear"))
    assert {"classifier.weight", "classifier.bias"} < set(linear.state_dict())


def test_replacing_the_classifier_alone_keeps_the_dropout_before_it() -> None:
    network, whole = build_network(architecture(input_size=224, classes=5))
    dropout = network.backbone.get_submodule("17")
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.5
    assert round(count(network) / 1e6, 1) == 1.2
    assert count(network) == count(whole) - dense(256, 1000) + dense(256, 5)


@pytest.mark.parametrize(
    ("name", "cut"), [("vit_b_16", "getitem"), ("shufflenet_v2_x0_5", "stage2.1.chunk")]
)
def test_a_cut_that_gives_no_row_for_each_picture_is_refused(name: str, cut: str) -> None:
    with torch.device("meta"), pytest.raises(RequestError, match="no activations for each picture"):
        build_network(architecture(backbone=name, cut=cut, input_size=224))


def test_the_largest_vision_transformer_takes_its_own_size() -> None:
    assert describe_network(TrainConfig(backbone="vit_h_14", describe=True), 2)["input_size"] == 518
