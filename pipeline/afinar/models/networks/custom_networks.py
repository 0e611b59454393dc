"""Networks that torchvision lacks: the small CNN of courses, and EfficientNet-Lite0."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from afinar.models.networks.vision import EfficientNet, MBConvConfig, efficientnet


def small_cnn(input_size: int, classes: int = 1000) -> nn.Sequential:
    """Return the network that transfer-learning courses train from scratch.

    It has four blocks of a 3x3 convolution of 32 channels without padding, ReLU and 2x2 pooling,
    with dropout 0.25 after the second and fourth block; then dense 256, ReLU, dropout 0.5, dense.
    The side of the activations falls from 224 px to 111, 54, 26 and 12; the network has 1.2 million
    parameters.
    """
    layers: list[nn.Module] = []
    channels, side = 3, input_size
    for block in range(4):
        layers += [nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
        channels, side = 32, (side - 2) // 2
        if block in {1, 3}:
            layers.append(nn.Dropout(0.25))
    layers += [
        nn.Flatten(),
        nn.Linear(32 * side * side, 256),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(256, classes),
    ]

    return nn.Sequential(*layers)


# Expansion ratio, kernel, stride, input channels, output channels and repeats of each stage.
_LITE0_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


class _NoExcitation(nn.Identity):
    """Identity in place of EfficientNet's squeeze-and-excitation, which the Lite variant lacks."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def efficientnet_lite0(
    input_size: int, classes: int = 1000, *, pads_symmetrically: bool = False
) -> nn.Module:
    """Return EfficientNet-Lite0 for inputs of `input_size` pixels, built from torchvision's blocks.

    It is EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946) as published for mobile accelerators:
    no squeeze-and-excitation, ReLU6 instead of SiLU, stem and last stage not scaled. Its weights
    were trained with TensorFlow's padding. `pads_symmetrically` pads strided convolutions as is
    usual in torch, as models were built in the first revision.
    """
    block = partial(efficientnet.MBConv, se_layer=_NoExcitation)
    stages = [MBConvConfig(*stage, block=block) for stage in _LITE0_STAGES]
    network: nn.Module = EfficientNet(
        stages,
        dropout=0.2,
        stochastic_depth_prob=0.0,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        num_classes=classes,
        last_channel=1280,
    )
    _replace_activations(network)
    if not pads_symmetrically:
        _pad_as_tensorflow(network, input_size)

    return network


def _replace_activations(module: nn.Module) -> None:
    """Replace each SiLU by ReLU6, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.SiLU):
            setattr(module, name, nn.ReLU6(inplace=True))
        else:
            _replace_activations(child)


def _pad_as_tensorflow(network: nn.Module, side: int) -> None:
    """Give each strided convolution the padding that TensorFlow calls SAME, in place.

    `side` is that of the input. TensorFlow pads no more than the output needs, and puts the odd
    pixel at the right and at the bottom; torch pads both sides equally:

        side 224, kernel 3, stride 2: TensorFlow pads 0 and 1, torch 1 and 1
        side 225, kernel 3, stride 2: both pad 1 and 1
        side 56, kernel 5, stride 2: TensorFlow pads 1 and 2, torch 2 and 2
    """
    strided = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride[0] > 1
    ]
    for name, convolution in strided:
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        outputs = -(-side // stride)
        total = max(0, (outputs - 1) * stride + kernel - side)
        before, after = total // 2, total - total // 2
        convolution.padding = (0, 0)
        padded = nn.Sequential(nn.ZeroPad2d((before, after, before, after)), convolution)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, padded)
        side = outputs


def remap_by_position(
    state: dict[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """Return `state` with the names of `network`, whose tensors it lists in the same order.

        state                network              result
        _conv_stem.weight    features.0.0.weight  features.0.0.weight: the first tensor
        _bn0.weight          features.0.1.weight  features.0.1.weight: the second tensor

    Counters of batches (`num_batches_tracked`) are left out. Raises ValueError if the number of
    tensors or a shape differs.
    """
    counters = "num_batches_tracked"
    source = [tensor for name, tensor in state.items() if not name.endswith(counters)]
    target = {
        name: tensor for name, tensor in network.state_dict().items() if not name.endswith(counters)
    }

    renamed = dict(zip(target, source, strict=True))
    for name, tensor in renamed.items():
        expected = target[name].shape
        if tensor.shape != expected:
            raise ValueError(f"{name}: {tuple(tensor.shape)} instead of {tuple(expected)}")
    return renamed
