"""Networks that torchvision does not have: the courses' small CNN and EfficientNet-Lite0."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import efficientnet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig


def small_cnn(input_size: int, classes: int = 1000) -> nn.Sequential:
    """Transfer-learning courses' network for training from scratch: 1.2 M parameters at 224 px.

    Four times 3x3 valid convolution of 32 channels, ReLU, 2x2 pooling; dropout .25 after the second and
    the fourth; dense 256, dropout .5, dense.
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


# expand ratio, kernel, stride, in, out, repeats of each stage
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
    """Stands where EfficientNet has squeeze-and-excitation; Lite has none."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def efficientnet_lite0(classes: int = 1000) -> nn.Module:
    """EfficientNet-Lite0 from torchvision's own blocks.

    EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946) as published for mobile accelerators: no
    squeeze-and-excitation, ReLU6 instead of SiLU, stem and last stage not scaled. Padding is torch's,
    symmetric, where the original's is TensorFlow's.
    """
    block = partial(efficientnet.MBConv, se_layer=_NoExcitation)
    stages = [MBConvConfig(*stage, block=block) for stage in _LITE0_STAGES]
    network: nn.Module = EfficientNet(
        stages, dropout=0.2, stochastic_depth_prob=0.0, norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        num_classes=classes, last_channel=1280,
    )  # fmt: skip
    _replace_activations(network)
    return network


def _replace_activations(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.SiLU):
            setattr(module, name, nn.ReLU6(inplace=True))
        else:
            _replace_activations(child)


def remap_by_position(
    state: dict[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """Rename a state dict that lists its tensors in the network's own order under other names.

    Raises ValueError when the two do not correspond one to one.
    """
    counters = "num_batches_tracked"
    theirs = [tensor for name, tensor in state.items() if not name.endswith(counters)]
    ours = {
        name: tensor for name, tensor in network.state_dict().items() if not name.endswith(counters)
    }
    renamed = dict(zip(ours, theirs, strict=True))
    for name, tensor in renamed.items():
        if tensor.shape != ours[name].shape:
            raise ValueError(f"{name}: {tuple(tensor.shape)} instead of {tuple(ours[name].shape)}")
    return renamed
