"""A backbone with a head: what is trained, published, and asked for scores."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from afinar.config.jobs import Pool
from afinar.errors import RequestError
from afinar.models.networks.backbones import build_backbone, cut_backbone
from afinar.models.registry.versions import Architecture
from afinar.pictures.preprocessing import InputView


class Network(nn.Module):
    """Backbone up to its cut, pooling, classifier.

    forward: float32 [n, 3, input_size, input_size], normalised → logits float32 [n, classes].
    """

    def __init__(
        self, backbone: fx.GraphModule, classifier: nn.Module, pool: Pool = "average"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.pool: Pool = pool

    def features(self, images: Tensor) -> Tensor:
        """Activations at the cut as one row each: [n, width]; their `average` over places, or all of them."""
        return _pooled(self.backbone(images), self.pool)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class BinaryLogits(nn.Module):
    """One output z as the logits of two classes: [n, 1] → [0, z], [n, 2].

    Softmax over [0, z] gives the second class e^z / (1 + e^z), which is sigmoid(z); so its cross-entropy
    is the binary cross-entropy of z, and everything that reads logits of classes serves this head too.
    """

    def forward(self, outputs: Tensor) -> Tensor:
        """Logits."""
        return torch.cat([torch.zeros_like(outputs), outputs], dim=1)


def forward_batch(device: torch.device) -> int:
    """Pictures per forward pass without gradients, where nobody says otherwise.

    On one core activations of a small batch stay in its cache: EfficientNet-Lite0 at 224 px scores 47
    pictures a second in batches of 8, 21 in batches of 64. A GPU wants more to do at once.
    """
    return 8 if device.type == "cpu" else 64


def _pooled(activations: Tensor, pool: Pool) -> Tensor:
    if pool == "flatten":
        return activations.flatten(1)  # in the order [channels, h, w] whatever the memory format
    if (
        activations.ndim == 4
    ):  # global average over [n, channels, h, w], or Swin's and ConvNeXt's [n, h, w, channels]
        _, one, two, three = activations.shape
        return activations.mean(dim=(1, 2) if one == two != three else (2, 3))
    if activations.ndim == 3:  # [n, tokens, channels]
        return activations.mean(dim=1)
    return activations


def build_network(architecture: Architecture) -> tuple[Network, nn.Module]:
    """Build with random weights. Returns the network and the uncut backbone it was cut from.

    Raises RequestError when the backbone cannot take the input size, and for a cut without one row per picture.
    """
    whole = build_backbone(architecture.backbone, architecture.input_size)
    extractor, cut = cut_backbone(whole, architecture.cut)
    size = architecture.input_size
    extractor.eval()
    try:
        with torch.no_grad():
            activations = extractor(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RequestError(
            f"--input-size {size}: {architecture.backbone} cut at {architecture.cut} cannot take "
            f"{size} x {size} pixels ({str(error).splitlines()[0]}); give another size or an earlier cut"
        ) from error
    if not isinstance(activations, Tensor) or activations.ndim < 2 or activations.shape[0] != 1:
        raise RequestError(
            f"--cut {cut}: it gives no activations for each picture; `--describe` lists nodes that do"
        )
    width = _pooled(activations, architecture.pool).shape[1]
    return Network(extractor, _classifier(architecture, width), architecture.pool), whole


def _classifier(architecture: Architecture, width: int) -> nn.Module:
    one = architecture.output == "sigmoid"
    outputs = 1 if one else architecture.classes
    last = [BinaryLogits()] if one else []
    if architecture.head == "mlp":
        hidden, dropout = architecture.hidden, architecture.dropout
        layers = [
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, outputs),
        ]
        return nn.Sequential(*layers, *last)
    linear = nn.Linear(width, outputs)
    return nn.Sequential(linear, *last) if last else linear


def prepare(images: Tensor, view: InputView) -> Tensor:
    """Execute the input view: uint8 [n, s, s, 3] → float32 [n, 3, input_size, input_size], channels last."""
    pixels = images.permute(0, 3, 1, 2).float()
    if pixels.shape[-1] != view.input_size:
        size = (view.input_size, view.input_size)
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    scale = 1 / (255 * torch.tensor(view.std))
    offset = -255 * torch.tensor(view.mean) * scale
    scale, offset = (  # made here and sent, so that a GPU is not waited for
        values.view(1, 3, 1, 1).to(images.device, non_blocking=True) for values in (scale, offset)
    )
    normalised = torch.addcmul(offset, pixels, scale)  # one pass over the pixels
    return normalised.contiguous(memory_format=torch.channels_last)
