"""A backbone with a head: what is trained, published, and asked for scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Head
from pipeline.errors import RequestError
from pipeline.models.backbones import build_backbone, cut_backbone
from pipeline.models.versions import Architecture
from pipeline.pictures.contract import InputView


class Network(nn.Module):
    """Backbone up to its cut, pooling, classifier.

    forward: float32 [n, 3, input_size, input_size], normalised → logits float32 [n, classes].
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def features(self, images: Tensor) -> Tensor:
        """Pooled activations at the cut: [n, channels]."""
        return _pooled(self.backbone(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def forward_batch(device: torch.device) -> int:
    """Pictures per forward pass without gradients, where nobody says otherwise.

    On one core activations of a small batch stay in its cache: EfficientNet-Lite0 at 224 px scores 47
    pictures a second in batches of 8, 21 in batches of 64. A GPU wants more to do at once.
    """
    return 8 if device.type == "cpu" else 64


def _pooled(activations: Tensor) -> Tensor:
    if activations.ndim == 4:  # global average over [n, channels, h, w], or Swin's and ConvNeXt's [n, h, w, channels]
        _, one, two, three = activations.shape
        return activations.mean(dim=(1, 2) if one == two != three else (2, 3))
    if activations.ndim == 3:  # [n, tokens, channels]
        return activations.mean(dim=1)
    return activations


def build_network(architecture: Architecture) -> tuple[Network, nn.Module]:
    """Build with random weights. Returns the network and the uncut backbone it was cut from.

    Raises RequestError when the backbone cannot take the input size.
    """
    whole = build_backbone(architecture.backbone, architecture.input_size)
    extractor, _ = cut_backbone(whole, architecture.cut)
    size = architecture.input_size
    extractor.eval()
    try:
        with torch.no_grad():
            width = _pooled(extractor(torch.zeros(1, 3, size, size))).shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RequestError(
            f"--input-size {size}: {architecture.backbone} cut at {architecture.cut} cannot take "
            f"{size} x {size} pixels ({str(error).splitlines()[0]}); give another size or an earlier cut"
        ) from error
    return Network(extractor, _classifier(architecture.head, width, architecture.classes)), whole


def _classifier(head: Head, width: int, classes: int) -> nn.Module:
    if head == "linear":
        return nn.Linear(width, classes)
    return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, classes))


def prepare(images: Tensor, view: InputView) -> Tensor:
    """Execute the input view: uint8 [n, s, s, 3] → float32 [n, 3, input_size, input_size], channels last."""
    pixels = images.permute(0, 3, 1, 2).float()
    if pixels.shape[-1] != view.input_size:
        size = (view.input_size, view.input_size)
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    mean = torch.tensor(view.mean, device=images.device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(view.std, device=images.device).mul(255).view(1, 3, 1, 1)
    return pixels.sub(mean).div(std).contiguous(memory_format=torch.channels_last)
