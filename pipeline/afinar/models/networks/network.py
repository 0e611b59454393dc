"""The network that is trained, published and used for predictions: a cut backbone with a head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from afinar.config.train import Pool
from afinar.errors import RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.cuts import TRACING, cut_backbone
from afinar.models.networks.heads import build_head, pool_activations
from afinar.pictures.preprocessing import InputView


class Network(nn.Module):
    """Backbone up to its cut, pooling, classifier."""

    def __init__(
        self, backbone: fx.GraphModule, classifier: nn.Module, pool: Pool = "average"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.pool: Pool = pool

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled activations at the cut, the classifier's input: float [n, width]."""
        return pool_activations(self.backbone(images), self.pool)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [n, classes] of normalised images [n, 3, input_size, input_size]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class BuiltNetwork(NamedTuple):
    """A network with random weights, and the whole backbone that its part was cut from."""

    network: Network
    whole: nn.Module


def build_network(architecture: Architecture) -> BuiltNetwork:
    """Build a network with random weights.

    Raises RequestError if the backbone cannot take the input size, or if the activations at the cut
    do not have one row per picture.
    """
    whole = build_backbone(architecture.backbone, architecture.input_size, architecture.revision)
    backbone, cut = cut_backbone(whole, architecture.cut)
    activations = _trial_activations(backbone, architecture)
    if not isinstance(activations, Tensor) or activations.ndim < 2 or activations.shape[0] != 1:
        raise RequestError(
            f"--cut {cut}: it gives no activations for each picture; "
            "`--describe` lists nodes that do"
        )
    width = pool_activations(activations, architecture.pool).shape[1]

    return BuiltNetwork(
        Network(backbone, build_head(architecture, width), architecture.pool), whole
    )


def _trial_activations(backbone: fx.GraphModule, architecture: Architecture) -> object:
    """Return the activations at the cut for one black picture, to see their shape."""
    size = architecture.input_size
    try:
        with TRACING, torch.no_grad():
            return backbone.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RequestError(
            f"--input-size {size}: {architecture.backbone} cut at {architecture.cut} cannot take "
            f"{size} x {size} pixels ({str(error).splitlines()[0]}); "
            "give another size or an earlier cut"
        ) from error


def apply_input_view(images: Tensor, view: InputView) -> Tensor:
    """Resize and normalise stored views for a network.

    uint8 [n, size, size, 3] → float32 [n, 3, input_size, input_size], channels last.
    """
    pixels = images.float()
    if pixels.shape[1] != view.input_size:
        size = (view.input_size, view.input_size)
        resized = F.interpolate(
            pixels.permute(0, 3, 1, 2),
            size,
            mode=view.interpolation,
            antialias=True,
            align_corners=False,
        )
        if view.interpolation == "bicubic":  # it overshoots at edges
            resized = resized.clamp(0, 255)
        pixels = resized.permute(0, 2, 3, 1)

    # (x / 255 - mean) / std = x * scale + offset, in one pass over the pixels. The constants are
    # repeated for a whole row: one loop over 672 values takes a fifth of the time of loops over 3.
    # They are computed on the CPU and copied asynchronously, so that it does not wait for a GPU.
    scale = 1 / (255 * torch.tensor(view.std))
    offset = -255 * torch.tensor(view.mean) * scale
    scale, offset = (
        constant.repeat(view.input_size).to(images.device, non_blocking=True)
        for constant in (scale, offset)
    )
    normalised = torch.addcmul(offset, pixels.flatten(2), scale)
    return normalised.view(-1, view.input_size, view.input_size, 3).permute(0, 3, 1, 2)


def default_batch_size(device: torch.device) -> int:
    """Return the number of pictures per forward pass without gradients, if none is configured.

    On one thread torch convolves 1 x 1 without oneDNN in smaller batches than 16. Larger batches
    leave the caches. Pictures a second at 224 px, two processes of one thread on two cores:

        batch                    4      8     16     32     64
        MobileNetV3 small      224    220    263    278    255
        EfficientNet-Lite0    38.3   40.5   38.9   38.0   35.2
        ResNet-18             29.3   31.2   31.6   31.2   31.0

    A GPU needs a larger batch to be busy.
    """
    return 16 if device.type == "cpu" else 64
