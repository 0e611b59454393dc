"""Architectures for tests, and parameter counts from torchvision's definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision.models as zoo
from torch import nn

from afinar.models.networks.architecture import Architecture
from afinar.models.networks.network import Network

RECIPES = Path(__file__).resolve().parents[3] / "jobs" / "recipes"


def architecture(**options: Any) -> Architecture:
    values: dict[str, Any] = {
        "backbone": "small_cnn",
        "cut": "auto",
        "head": "linear",
        "input_size": 64,
        "classes": 2,
    }
    return Architecture(**{**values, **options})


def head_layers(network: Network) -> list[Any]:
    return list(network.classifier.children())


def count_parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def dense_parameters(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def inception_to_mixed_6e() -> nn.Module:
    with torch.device("meta"):
        whole = zoo.inception_v3(aux_logits=False, init_weights=False)
    names = [name for name, _ in whole.named_children()]
    return nn.Sequential(
        *(whole.get_submodule(name) for name in names[: names.index("Mixed_6e") + 1])
    )


def parameters_by_hand(name: str, classes: int) -> tuple[int, int]:
    """Return the numbers of all and of trained parameters of a recipe's network."""
    name = name.replace("-tuned", "")
    if name == "train-scratch.toml":
        convolutions = 3 * 32 * 9 + 32 + 3 * (32 * 32 * 9 + 32)
        total = convolutions + dense_parameters(12 * 12 * 32, 256) + dense_parameters(256, classes)
        return total, total

    with torch.device("meta"):
        if name == "vgg16-flatten.toml":
            body = count_parameters(zoo.vgg16().features)
            head = dense_parameters(512 * 7 * 7, classes)
        elif name == "vgg16-fc2.toml":
            vgg = zoo.vgg16()
            body = count_parameters(vgg.features, vgg.classifier[:5])
            head = dense_parameters(4096, classes)
        elif name == "resnet50-extractor.toml":
            resnet = zoo.resnet50()
            body = count_parameters(resnet) - count_parameters(resnet.fc)
            head = dense_parameters(2048, classes)
        elif name == "mobilenet-extractor.toml":
            body = count_parameters(zoo.mobilenet_v2().features)
            head = dense_parameters(1280, classes)
        elif name == "train-frozen.toml":
            resnet = zoo.resnet18()
            body = count_parameters(resnet) - count_parameters(resnet.fc)
            head = dense_parameters(512, classes)
        else:
            assert name == "inception-mixed6e.toml"
            body = count_parameters(inception_to_mixed_6e())
            head = dense_parameters(768 * 7 * 7, 1024) + dense_parameters(1024, 1)
    return body + head, head
