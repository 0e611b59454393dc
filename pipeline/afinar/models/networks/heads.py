"""Heads: pooling of the activations at the cut, and the classifier on the pooled features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afinar.config.train import Pool
from afinar.models.networks.architecture import Architecture


class BinaryLogits(nn.Module):
    """Logits of two classes from one output z: [n, 1] → [n, 2], z → [0, z].

    Softmax over [0, z] gives the second class e^z / (1 + e^z), which is sigmoid(z). So the
    cross-entropy of these logits is the binary cross-entropy of z, and code that reads class logits
    needs no special case for a network with one output. Example: z = 2 gives logits [0, 2] and
    probabilities [0.12, 0.88]; sigmoid(2) = 0.88.
    """

    def forward(self, outputs: Tensor) -> Tensor:
        """Return float [n, 2] for float [n, 1]."""
        return torch.cat([torch.zeros_like(outputs), outputs], dim=1)


def build_head(architecture: Architecture, width: int) -> nn.Module:
    """Return the classifier for features of `width` columns: one linear layer, or an MLP."""
    binary = architecture.output == "sigmoid"
    outputs = 1 if binary else architecture.classes

    layers: list[nn.Module] = [nn.Linear(width, outputs)]
    if architecture.head == "mlp":
        layers = [
            nn.Linear(width, architecture.hidden),
            nn.ReLU(),
            nn.Dropout(architecture.dropout),
            nn.Linear(architecture.hidden, outputs),
        ]
    if binary:
        layers.append(BinaryLogits())

    # A linear head is not wrapped: published weights are named `classifier.weight`.
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


def pool_activations(activations: Tensor, pool: Pool) -> Tensor:
    """Return one row per picture: [n, width].

    `flatten` keeps all activations, in the order [channels, h, w] whatever the memory format.
    `average` takes the mean over positions. Its input is one of

        [n, channels, h, w]     most networks
        [n, h, w, channels]     Swin and ConvNeXt inside a block; recognised by h == w != channels
        [n, tokens, channels]   vision transformers
        [n, width]              pooled already
    """
    if pool == "flatten":
        return activations.flatten(1)
    if activations.ndim == 4:
        _, first, second, third = activations.shape
        return activations.mean(dim=(1, 2) if first == second != third else (2, 3))
    if activations.ndim == 3:
        return activations.mean(dim=1)

    return activations
